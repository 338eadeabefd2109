"""Every parallel group does what it will do in training, on a clock: it sums, and neighbours send to each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

REPEATS = 3
_PERIOD = 97
"""Of the pattern that is summed: its sums over thousands of ranks are exact in float32."""


def time_group(group: dist.ProcessGroup, device: torch.device, size: int) -> dict[str, Any]:
    """One rank's view of its group; called by all ranks of the group.

    Args:
        group: two or more ranks.
        device: where the tensors live.
        size: bytes of a message.

    Returns:
        `ranks` of the group, `wrong` numbers in the sum, `sum_seconds` of an all-reduce and `receive_seconds` of the
        message from the previous rank in the circle of the group, while all ranks send to the next one. The best of
        three times counts.
    """
    ranks = dist.get_process_group_ranks(group)
    here = dist.get_rank(group)
    pattern = (torch.arange(max(1, size // 4), device=device) % _PERIOD).float()
    wanted = pattern * len(ranks) + sum(ranks)
    given = pattern + ranks[here]
    buffer = torch.empty_like(given)

    def reduce() -> None:
        """Sum over the group."""
        buffer.copy_(given)
        dist.all_reduce(buffer, group=group)

    sum_seconds = _best(reduce, group, device)
    wrong = int((buffer != wanted).sum())
    after, before = ranks[(here + 1) % len(ranks)], ranks[here - 1]

    def exchange() -> None:
        """Send to the next rank, receive from the previous one."""
        sends = dist.P2POp(dist.isend, given, after, group)
        receives = dist.P2POp(dist.irecv, buffer, before, group)
        for work in dist.batch_isend_irecv([sends, receives]):
            work.wait()

    receive_seconds = _best(exchange, group, device)
    wrong += int((buffer != pattern + before).sum())
    return {"ranks": ranks, "wrong": wrong, "sum_seconds": sum_seconds, "receive_seconds": receive_seconds}


def _best(step: Callable[[], None], group: dist.ProcessGroup, device: torch.device) -> float:
    """Seconds of the fastest of some repetitions, after one that makes connections; all ranks begin together."""
    best = float("inf")
    meeting = torch.zeros(1, device=device)
    for turn in range(1 + REPEATS):
        dist.all_reduce(meeting, group=group)
        _finish(device)
        begin = time.perf_counter()
        step()
        _finish(device)
        if turn > 0:
            best = min(best, time.perf_counter() - begin)
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
