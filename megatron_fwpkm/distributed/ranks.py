"""Steps that the ranks of a run take together. Without a process group there is one rank, and nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """This process's global rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes of the run, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for every rank; raises RuntimeError if one is gone."""
    if world_size() > 1:
        dist.barrier()


def on_rank_zero(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 and give its result to every rank.

    A ValueError or OSError of rank 0 is raised on every rank as ValueError with the same message, so that all end with
    the same reason; the result must be picklable.
    """
    if world_size() == 1:
        return function()
    outcome: list[tuple[T | None, str | None]] = [(None, None)]
    failure: BaseException | None = None
    if rank() == 0:
        try:
            outcome = [(function(), None)]
        except (ValueError, OSError) as error:
            failure, outcome = error, [(None, str(error))]
    dist.broadcast_object_list(outcome, src=0)
    result, message = outcome[0]
    if message is not None:
        raise ValueError(message) from failure
    return result  # type: ignore[return-value]


def any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """Element-wise "or" of `flags` over all ranks; `device` is where the collective's tensor lives."""
    if world_size() == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]
