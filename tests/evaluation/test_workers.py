"""Tasks in several processes: all results, and failures that say what happened."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from megatron_fwpkm.evaluation.workers import run_in_processes


def _squares(offset: int):
    return lambda task: (task * task + offset, os.getpid(), torch.get_num_threads())


def _refuses(offset: int):
    raise ValueError(f"no model {offset}")


def _breaks(offset: int):
    return lambda task: 1 // (task - offset)


def _dies(offset: int):
    return lambda task: os.kill(os.getpid(), signal.SIGKILL)


def test_every_task_is_done_once_in_all_processes():
    results = list(run_in_processes(2, range(7), _squares, (10,)))
    assert sorted(value for value, _, _ in results) == [task * task + 10 for task in range(7)]
    assert len({pid for _, pid, _ in results}) == 2 and os.getpid() not in {pid for _, pid, _ in results}
    assert {threads for _, _, threads in results} == {max(1, (os.cpu_count() or 1) // 2)}


@pytest.mark.parametrize(
    ("worker", "error", "said"),
    [
        (_refuses, ValueError, "no model 3"),
        (_breaks, RuntimeError, r"(?s)a worker process failed.*ZeroDivisionError"),
        (_dies, ChildProcessError, "a worker process died, status -9.*the same command goes on"),
    ],
)
def test_failures_are_told(worker, error, said):
    with pytest.raises(error, match=said):
        list(run_in_processes(1, [3, 4], worker, (3,)))
