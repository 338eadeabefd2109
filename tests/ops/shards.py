"""Processes that share a memory, played by threads of this one: forward and backward with real collectives."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_fwpkm.ops import FastWeightOutput, FastWeightState
from megatron_fwpkm.ops.fast_weight_memory.api import fast_weight_memory_
from tests.ops.cases import Case

_PATIENCE = 60
"""Seconds until a rank that waits alone gives up."""


class _Meeting:
    """Where the ranks leave their tensors and take everybody's."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left: list[Tensor] = [torch.empty(0)] * size
        self.barrier = threading.Barrier(size, timeout=_PATIENCE)

    def exchange(self, rank: int, x: Tensor) -> Tensor:
        """All ranks' tensors by rank, stacked."""
        self.left[rank] = x.detach().clone()
        self.barrier.wait()
        everyone = torch.stack(self.left)
        self.barrier.wait()
        return everyone


class _CopyToShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: ThreadShards) -> Tensor:
        ctx.shards = shards
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.shards.sum_shards(gradient), None


class ThreadShards:
    """One rank's `TableSharding`; counts what is asked of it by name, and elements by `NAME elements`."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank, self.size, self._meeting = rank, size, meeting
        self.sent: Counter[str] = Counter()

    def copy_to_shards(self, x: Tensor) -> Tensor:
        """Identity; backward sums."""
        return _CopyToShards.apply(x, self)

    def sum_shards(self, x: Tensor) -> Tensor:
        """Sum over ranks, in the same order on all of them."""
        self._count("sum", x.numel())
        return self._meeting.exchange(self.rank, x).sum(0)

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' tensors."""
        self._count("gather", x.numel() * self.size)
        return self._meeting.exchange(self.rank, x)

    def _count(self, name: str, elements: int) -> None:
        self.sent[name] += 1
        self.sent[f"{name} elements"] += elements


def run_ranks(size: int, function: Callable[[ThreadShards], Any]) -> list[Any]:
    """Call `function(shards)` as each of `size` ranks at once; the first rank's error is raised here."""
    meeting = _Meeting(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []
    grad = torch.is_grad_enabled()

    def run(rank: int) -> None:
        try:
            with torch.set_grad_enabled(grad):
                results[rank] = function(ThreadShards(rank, size, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)] or errors
    if causes:
        raise causes[0]
    return results


def part_of(case: Case, shards: ThreadShards) -> Case:
    """A rank's rows of the sub-keys and columns of values and targets; fresh tensors."""
    rank, size = shards.rank, shards.size
    state = FastWeightState(
        case.state.sub_keys.detach().chunk(size, 2)[rank].clone(),
        case.state.values.detach().chunk(size, 1)[rank].clone(),
        case.state.pending,
    )
    if case.state.pending is not None:
        pending = case.state.pending
        mine = type(pending)(pending.queries, pending.targets.chunk(size, -1)[rank], pending.gates, pending.mask)
        state = FastWeightState(state.sub_keys, state.values, mine)
    targets = case.targets.detach().chunk(size, -1)[rank].clone()
    gates = None if case.gates is None else case.gates.detach().clone()
    return Case(case.queries.detach().clone(), targets, gates, case.mask, state, case.options)


def run_part(part: Case, shards: ThreadShards, **changes: Any) -> FastWeightOutput:
    """A rank's call of the in-place form."""
    options = {**part.options, **changes}
    return fast_weight_memory_(
        part.queries, part.targets, part.gates, part.state, mask=part.mask, sharding=shards, **options
    )
