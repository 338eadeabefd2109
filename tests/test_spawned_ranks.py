"""The harness of multi-process tests: results by rank, and three ways to fail told apart."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed

from tests import spawned_ranks
from tests.spawned_ranks import run_distributed


def _sum_of_ranks(rank: int, world_size: int, factor: int) -> float:
    number = torch.tensor(float(rank * factor))
    torch.distributed.all_reduce(number)
    assert world_size == torch.distributed.get_world_size()
    return number.item() + rank


def _one_raises(rank: int, world_size: int) -> None:
    if rank == 1:
        print("about to fail")
        raise ValueError("a reason of rank one")
    torch.distributed.barrier()


def _one_hangs(rank: int, world_size: int) -> None:
    if rank == 1:
        time.sleep(600)


def _one_dies(rank: int, world_size: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def _exits(rank: int, world_size: int) -> None:
    os._exit(7)


def test_results_come_back_by_rank():
    assert run_distributed(_sum_of_ranks, 2, 10) == [10.0, 11.0]


def test_a_rank_that_raises_is_named_with_its_traceback_and_output():
    with pytest.raises(AssertionError, match=r"(?s)rank 1 of 2 failed.*_one_raises.*a reason.*about to fail"):
        run_distributed(_one_raises, 2)


def test_a_rank_that_hangs_is_named_at_the_time_limit():
    with pytest.raises(AssertionError, match=r"(?s)\[0, 1\] of 2 had not finished after 2 s.*in _one_hangs"):
        run_distributed(_one_hangs, 2, timeout=2)


def test_a_rank_that_does_not_begin_is_named(monkeypatch):
    monkeypatch.setattr(spawned_ranks, "_START_SECONDS", 0)
    with pytest.raises(AssertionError, match=r"\[0\] of 1 had not begun after 0 s"):
        run_distributed(_exits, 1)


def test_a_rank_that_dies_is_named_with_its_signal():
    with pytest.raises(AssertionError, match=r"rank 1 of 2 was killed by SIGKILL"):
        run_distributed(_one_dies, 2)


def test_a_rank_that_exits_is_named_with_its_status():
    with pytest.raises(AssertionError, match=r"rank 0 of 1 exited with status 7"):
        run_distributed(_exits, 1)
