"""Ranks that hold up the others: who is named, and that processes which are slowed down for real are."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_fwpkm.config import FaultConfig
from megatron_fwpkm.config.validation import validate
from megatron_fwpkm.engines.forward_time import ForwardTime
from megatron_fwpkm.models.builder import MegatronFwPKMModel
from megatron_fwpkm.training.metrics import JsonRecord, read_records
from megatron_fwpkm.training.stragglers import OwnTime, find_stragglers
from tests.engines.test_engine import BASE
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import flags, start, write_dataset


def ranks(*seconds: tuple[float, float], tensor_parallel: int = 1, stages: int = 1) -> list[OwnTime]:
    """(forward, data) of every rank, in Megatron's order: tensors, replicas, stages."""
    per_stage = len(seconds) // stages
    return [
        OwnTime(rank, f"node{rank // 2}", rank // per_stage, rank % per_stage // tensor_parallel, forward, data)
        for rank, (forward, data) in enumerate(seconds)
    ]


def named(found: list[OwnTime], threshold: float = 1.2) -> list[tuple[int, float]]:
    return [(one.own.rank, round(one.times, 3)) for one in find_stragglers(found, threshold)]


def test_slow_ranks_are_named_in_the_order_of_their_slowness() -> None:
    found = ranks((1.0, 0.0), (1.5, 0.0), (1.0, 0.0), (1.0, 2.0))
    assert named(found) == [(3, 3.0), (1, 1.5)]
    assert find_stragglers(found, 1.2)[1].words() == (
        "rank 1 (on node0) takes 1.50 times the median: forward 1.500 s (median 1.000), reading data 0.000 s "
        "(median 0.000)"
    )
    assert named(ranks((1.0, 0.0), (1.19, 0.0))) == [] == named(found, 3.1)
    assert named(ranks((1.0, 0.0), (1.3, 0.0))) == [(1, 1.3)], "with two ranks, the faster one is the yardstick"


def test_who_waits_for_the_data_of_another_is_not_named() -> None:
    """Rank 2 reads slowly; 3 waits for it within its forward passes, and replica 0 is as fast as it can be."""
    found = ranks((1.0, 0.0), (1.0, 0.0), (1.0, 0.5), (1.5, 0.0), tensor_parallel=2)
    assert named(found) == [(2, 1.5)]
    assert named(found[2:]) == [(2, 1.5)], "one replica"
    assert named(ranks((1.0, 0.0), (1.0, 0.0), (1.3, 0.4), (1.7, 0.0), tensor_parallel=2), 1.5) == [(2, 1.7)]
    computing = ranks((1.0, 0.0), (1.0, 0.0), (1.5, 0.0), (1.5, 0.0), tensor_parallel=2)
    assert named(computing) == [(2, 1.5), (3, 1.5)], "which of them, nobody can tell"


def test_stages_are_not_compared_with_each_other() -> None:
    assert named(ranks((1.0, 0.0), (1.0, 0.0), (2.0, 0.0), (2.0, 0.0), stages=2)) == []
    assert named(ranks((1.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 0.0), stages=2)) == [(3, 1.5)]


def train_with(rank: int, size: int, argv: list[str], slow: dict[str, int]) -> int:
    """A run in which one rank is slow at computing or at reading; returns how often ranks were compared."""
    from megatron_fwpkm.data.training.datasets import DocumentWindows

    compute, read, gather = MegatronFwPKMModel.forward, DocumentWindows.__getitem__, dist.all_gather_object
    compared = 0

    def slowly_computed(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.5 if slow.get("forward") == rank else 0.0)
        return compute(self, *args, **kwargs)

    def slowly_read(self: Any, index: int) -> Any:
        time.sleep(0.25 if slow.get("data") == rank else 0.0)
        return read(self, index)

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal compared
        compared += isinstance(args[1], OwnTime)
        gather(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MegatronFwPKMModel, "forward", slowly_computed)
        patch.setattr(DocumentWindows, "__getitem__", slowly_read)
        patch.setattr(dist, "all_gather_object", counted)
        assert start(argv) == 0
    return compared


def train_all(rank: int, size: int, runs: list[tuple[list[str], dict[str, int]]]) -> list[int]:
    return [train_with(rank, size, argv, slow) for argv, slow in runs]


def records_of(tmp_path: Path, size: int, slow: list[dict[str, int]], **layout: Any) -> list[list[JsonRecord]]:
    """What is recorded of stragglers in runs over `size` processes, of which one is slow."""
    data = write_dataset(tmp_path / "numbers")
    chosen = {
        "train_iters": 4, "log_interval": 3, "eval_iters": 0, "split": "1,0,0", "global_batch_size": 4, **layout,
        "log_straggler": True, "straggler_threshold": 2.5,
    }  # fmt: skip
    runs = [(flags(data, log_dir=tmp_path / str(number), **chosen), one) for number, one in enumerate(slow)]
    compared = run_distributed(train_all, size, runs, timeout=180)
    assert compared == [[2] * len(runs)] * size, "one gather for a report, at iterations 3 and 4"
    every = [read_records(tmp_path / str(number) / "metrics.jsonl") for number in range(len(runs))]
    return [[record for record in records if record["kind"] == "stragglers"] for records in every]


@pytest.mark.slow
def test_a_process_that_is_slow_is_named(tmp_path: Path) -> None:
    forward, data, nobody = records_of(tmp_path, 2, [{"forward": 1}, {"data": 0}, {}])
    assert nobody == []
    assert forward[0]["iteration"] == data[0]["iteration"] == 3
    for record in forward:
        (found,) = record["ranks"]
        assert found["rank"] == 1 and found["forward_seconds"] > 0.5 > found["data_seconds"]
    for record in data:
        (found,) = record["ranks"]
        assert found["rank"] == 0 and found["data_seconds"] > 0.5 and found["times_median"] > 2.5
        assert record["reason"].startswith(f"per iteration, rank 0 (on {found['host']}) takes ")


@pytest.mark.slow
def test_a_slow_rank_among_tensors_and_replicas(tmp_path: Path) -> None:
    layout = {"tensor_model_parallel_size": 2}
    forward, data, nobody = records_of(tmp_path, 4, [{"forward": 3}, {"data": 2}, {}], **layout)
    assert nobody == [] and forward and data
    assert all([one["rank"] for one in record["ranks"]] == [2] for record in data)
    assert all(sorted(one["rank"] for one in record["ranks"]) == [2, 3] for record in forward)


class Event:
    """A CUDA event of a device that has come to number `reached` of those in its queue; waiting for it is an error."""

    reached = 0
    queued: list[Event] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.queued.append(self)

    def query(self) -> bool:
        return self.queued.index(self) < Event.reached

    def elapsed_time(self, last: Event) -> float:
        assert last.query() and self.query()
        return 1000.0 * (self.queued.index(last) - self.queued.index(self))


def test_events_of_a_device_are_read_when_it_has_passed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = ForwardTime(torch.device("cuda"))
    for _ in range(3):
        with clock.measured():
            pass
    Event.reached = 5
    assert clock.take() == 2.0, "two passes; the third has begun"
    Event.reached = 6
    assert clock.take() == 1.0 and clock.take() == 0.0


def test_a_threshold_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--straggler-threshold 2.0 has no effect without --log-straggler"):
        validate(replace(BASE, faults=FaultConfig(straggler_threshold=2.0)))
