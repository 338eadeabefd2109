"""Ranks that hold up the others (--log-straggler): who takes longer over its own part of a step than its peers do."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import ClassVar

import torch.distributed as dist

from ..config import PretrainConfig
from ..distributed.startup import World
from ..engines.base import Batch, Engine
from .metrics import JsonRecord

_NAMED = 4
"""Ranks that a line names."""

logger = logging.getLogger("megatron_fwpkm")


@dataclass(frozen=True)
class OwnTime:
    """Seconds per iteration that a rank has spent on its own, not waiting for other replicas or stages."""

    SECONDS: ClassVar[tuple[str, ...]] = ("total", "forward", "data")
    rank: int
    host: str
    stage: int
    """Stage of the pipeline: only ranks of the same stage have the same work."""
    replica: int
    """Ranks of the same stage and replica wait for each other within a forward pass."""
    forward: float
    data: float
    """Reading batches."""

    @property
    def total(self) -> float:
        """Seconds of forward passes and of reading together."""
        return self.forward + self.data


@dataclass(frozen=True)
class Straggler:
    """A rank that is slower than its peers, with the numbers that say so."""

    own: OwnTime
    times: float
    """How many times the median it takes."""
    median_forward: float
    median_data: float

    def words(self) -> str:
        """`rank 3 (on node7) takes 1.52 times the median: ...`."""
        own = self.own
        return (
            f"rank {own.rank} (on {own.host}) takes {self.times:.2f} times the median: forward {own.forward:.3f} s "
            f"(median {self.median_forward:.3f}), reading data {own.data:.3f} s (median {self.median_data:.3f})"
        )

    def as_record(self) -> JsonRecord:
        """For metrics.jsonl."""
        own = self.own
        return {
            "rank": own.rank,
            "host": own.host,
            "times_median": self.times,
            "forward_seconds": own.forward,
            "data_seconds": own.data,
        }


def find_stragglers(found: Sequence[OwnTime], threshold: float) -> list[Straggler]:
    """The ranks that take more than `threshold` times the median of their stage, the slowest first.

    Where a rank waits for data, the others of its replica wait for it within their forward passes: only the one that
    reads slowly is named. Which rank computes slowly cannot be told within a replica, whose ranks take equally long.
    """
    slow: list[Straggler] = []
    for stage in {own.stage for own in found}:
        peers = [own for own in found if own.stage == stage]
        total, forward, data = (median_low([getattr(own, name) for own in peers]) for name in OwnTime.SECONDS)
        late, readers = list[Straggler](), set[int]()
        for own in peers:
            lost = max(0.0, own.data - data)  # by reading
            times = own.total / max(min(total, own.total - lost), 1e-9)
            if times > threshold:
                late.append(Straggler(own, times, forward, data))
                if lost > (own.total - own.total / times) / 2:
                    readers.add(own.rank)
        waiting = {own.replica for own in peers if own.rank in readers}
        slow += [one for one in late if one.own.rank in readers or one.own.replica not in waiting]
    return sorted(slow, key=lambda straggler: (-straggler.times, straggler.own.rank))


class StragglerWatch:
    """Measures this rank's own time, and compares it with the other ranks' whenever a report is due."""

    def __init__(self, config: PretrainConfig, world: World, engine: Engine) -> None:
        """Idle without --log-straggler and in a run of one process."""
        self._threshold = config.faults.straggler_threshold
        self._on = config.faults.log_straggler and world.size > 1
        self._world, self._engine = world, engine
        self._data = 0.0
        self._iterations = -1  # the first one of a process compiles and connects
        if config.faults.log_straggler and engine.layout.data_parallel == 1:
            logger.info(
                "--log-straggler: this run has one replica, so that there is no other to compare its forward passes "
                "with; only %s",
                "ranks that read data slowly are named" if self._on else "runs of several processes are watched",
            )

    def reading(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with a clock on the waiting for each."""
        return self._timed(iter(batches)) if self._on else iter(batches)

    def _timed(self, source: Iterator[Batch]) -> Iterator[Batch]:
        begin = time.perf_counter()
        for batch in source:
            self._data += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()

    def after_step(self) -> None:
        """Count an iteration."""
        self._iterations += 1
        if self._on and self._iterations == 0:
            self._take()

    def report(self, iteration: int) -> JsonRecord | None:
        """Compare the ranks over the iterations since the last report; logs who is slow, and returns that as a record.

        Called by every rank; one small gather. None where nobody is slow.
        """
        if not self._on or self._iterations < 1:
            return None
        count, self._iterations = self._iterations, 0
        forward, data = self._take()
        own = OwnTime(
            rank=self._world.rank,
            host=socket.gethostname(),
            stage=self._engine.pipeline_stage,
            replica=self._engine.data_parallel_rank,
            forward=forward / count,
            data=data / count,
        )
        found = [own] * self._world.size
        dist.all_gather_object(found, own)
        slow = find_stragglers(found, self._threshold)
        if not slow:
            return None
        more = f"; and {len(slow) - _NAMED} more ranks" if len(slow) > _NAMED else ""
        said = f"per iteration, {'; '.join(one.words() for one in slow[:_NAMED])}{more}"
        logger.info("iteration %d: %s", iteration, said)
        return {"iteration": iteration, "reason": said, "ranks": [one.as_record() for one in slow]}

    def _take(self) -> tuple[float, float]:
        """Seconds of forward passes and of reading data since the last call."""
        data, self._data = self._data, 0.0
        return self._engine.forward_seconds(), data
