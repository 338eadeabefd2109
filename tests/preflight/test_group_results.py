"""From times to bandwidths; a wrong sum, a slow group and a slow pair are named with ranks and nodes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megatron_fwpkm.distributed.launch_variables import Launch
from megatron_fwpkm.preflight.group_results import collect, group_troubles
from megatron_fwpkm.preflight.group_timing import time_group
from tests.spawned_ranks import run_distributed

HOSTS = {node: "abcd"[node] for node in range(4)}
LAUNCH = Launch(0, 8, 0, 2, "a", 29500, store_in_agent=False)


def word(rank: int, seconds: float = 0.01, wrong: int = 0, receive: float = 0.01) -> dict[str, object]:
    """What a rank of four tensor-parallel groups of two says."""
    first = rank - rank % 2
    told = {"ranks": [first, first + 1], "wrong": wrong, "sum_seconds": seconds, "receive_seconds": receive}
    return {"groups": {"tensor-parallel": told}}


def test_bandwidth() -> None:
    words = [word(rank, seconds=0.02 if rank == 3 else 0.01) for rank in range(8)]
    results = collect(words, 10**7, LAUNCH)
    assert [one.ranks for one in results] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    # Of two ranks each sends and receives the whole tensor once; the slower rank counts.
    assert [round(one.gigabytes_per_second, 6) for one in results] == [1.0, 0.5, 1.0, 1.0]
    assert results[1].nodes == (1,)
    assert results[0].pairs == {(1, 0): 1.0, (0, 1): 1.0}
    assert list(group_troubles(results, LAUNCH, HOSTS)) == [], "half of the median is not below it"


def test_a_slow_group_and_a_slow_pair() -> None:
    words = [word(rank, *((0.05, 0, 0.04) if rank == 5 else ())) for rank in range(8)]
    group, pair = group_troubles(collect(words, 10**7, LAUNCH), LAUNCH, HOSTS)
    assert group.what == (
        "the tensor-parallel group of ranks 4-5 on node 2 (c) moves 0.2 GB/s, the median of such groups is 1"
    )
    assert pair.what == "rank 4 to rank 5 (tensor-parallel, node 2 (c)) moves 0.25 GB/s, the median of such pairs is 1"
    assert not group.fatal and not pair.fatal


def test_wrong_sums_are_fatal() -> None:
    words = [word(rank, wrong=int(rank == 7)) for rank in range(8)]
    (one,) = group_troubles(collect(words, 10**7, LAUNCH), LAUNCH, HOSTS)
    assert one.fatal
    assert "the tensor-parallel group of ranks 6-7 on node 3 (d) computes wrong sums: rank 7 on node 3 (d)" in one.what


def measured(rank: int, size: int) -> tuple[dict, dict]:
    """The times of a group of three, sound and with a broken sum on rank 1."""
    assert dist.group.WORLD is not None
    sound = time_group(dist.group.WORLD, torch.device("cpu"), 4000)
    reduce = dist.all_reduce

    def broken(tensor: torch.Tensor, **kwargs: object) -> None:
        """Sum, and lose a number."""
        reduce(tensor, **kwargs)
        if rank == 1 and tensor.numel() > 1:
            tensor[7] += 1

    dist.all_reduce = broken
    return sound, time_group(dist.group.WORLD, torch.device("cpu"), 4000)


@pytest.mark.slow
def test_real_groups_are_timed_and_their_sums_checked() -> None:
    results = run_distributed(measured, 3, timeout=60)
    for sound, _ in results:
        assert sound["ranks"] == [0, 1, 2] and sound["wrong"] == 0
        assert 0 < sound["sum_seconds"] < 10 and 0 < sound["receive_seconds"] < 10
    assert [broken["wrong"] for _, broken in results] == [0, 1, 0]
