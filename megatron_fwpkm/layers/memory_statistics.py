"""What one memory did in its last forward pass, for logs, guards and checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import FastWeightOutput

_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
"""2**64 / golden ratio as a signed integer: spreads neighbouring numbers over all bits."""


@dataclass(frozen=True)
class MemoryStatistics:
    """Figures of one memory layer; NaN for those that its kind does not have.

    Attributes:
        gate_mean: mean gate of the last forward, 1 without gates.
        coverage: share of the slots written since the last reset; in the last forward where writes end with their text.
        collisions: 1 - distinct slots / reads, within the chunks of the last forward.
        memorization_loss: mean weighted squared error that the last forward's writes reduced; 0 without writes.
        addressing_loss: mean of the last forward's key updates; 0 without any.
    """

    gate_mean: float
    coverage: float
    collisions: float
    memorization_loss: float
    addressing_loss: float


class ForwardRecord:
    """The detached outputs of one forward; figures are computed only when somebody asks, so that a step costs nothing.

    Attributes:
        slots: of every call, [B, T, heads, topk].
        shared: what is the same on all ranks that share the memory: slots, gates, and queries one chunk apart, the last
            token's among them.

    Args:
        queries: of all tokens, [s, b, heads * key_dim].
        gates: of all tokens, or None.
        outputs: of the calls of the memory that made up the forward.
        chunk_size: tokens per chunk.
    """

    def __init__(self, queries: Tensor, gates: Tensor | None, outputs: list[FastWeightOutput], chunk_size: int) -> None:
        self._gates = None if gates is None else gates.detach()
        self.slots = [output.slot_indices for output in outputs]
        # A copy of a few, so that the others need not stay.
        sample = queries.detach()[(len(queries) - 1) % chunk_size :: chunk_size].clone()
        self.shared = [*self.slots, sample, *([] if self._gates is None else [self._gates])]
        self._memorization_losses = [output.memorization_loss for output in outputs]
        self._addressing_losses = [output.addressing_loss for output in outputs]
        self._chunk_size = chunk_size

    def summarize(self, coverage: Tensor) -> Tensor:
        """The figures in the order of `MemoryStatistics`, [5] float64 on the device; the host waits for none of them.

        Args:
            coverage: taken from the tables, which outlive a forward.
        """
        gate_mean, memorization = gate_and_loss(self._gates, self._memorization_losses, coverage)
        addressing = _mean(self._addressing_losses, coverage)
        return torch.stack([gate_mean, coverage, self._collisions(coverage), memorization, addressing])

    def _collisions(self, like: Tensor) -> Tensor:
        chunks = [chunk for slots in self.slots for chunk in slots.split(self._chunk_size, dim=1)]
        reads = sum(chunk.numel() for chunk in chunks)
        distinct = sum((_count_distinct(chunk) for chunk in chunks), like.new_zeros(()))
        return 1.0 - distinct / max(1, reads)


def gate_and_loss(gates: Tensor | None, losses: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the gates (1 without any) and of all losses, as float64 scalars on the device of `like`."""
    zero = torch.zeros((), dtype=torch.float64, device=like.device)
    return (zero + 1 if gates is None else gates.mean().double()), _mean(losses, zero)


def _count_distinct(slots: Tensor) -> Tensor:
    """How many values there are. (`unique` would make the host wait for the size of its result.)"""
    ordered = slots.flatten().sort().values
    return (ordered[1:] != ordered[:-1]).sum() + min(1, ordered.numel())


def _mean(losses: list[Tensor], like: Tensor) -> Tensor:
    count = sum(loss.numel() for loss in losses)
    return sum((loss.sum().double() for loss in losses), like.new_zeros(())) / max(1, count)


def hash_bits(tensors: Iterable[Tensor]) -> Tensor:
    """A number (int64 scalar) that changes with any single bit of `tensors` and with their order; no host sync."""
    total: Tensor | None = None
    for tensor in tensors:
        words = tensor.detach().contiguous().view(torch.int32).flatten().long()
        # Integers wrap around; an odd factor loses no bit.
        factors = torch.arange(1, 2 * words.numel(), 2, device=words.device) * _ODD
        hashed = (words * factors).sum()
        total = hashed if total is None else total * _ODD + hashed
    return torch.zeros((), dtype=torch.int64) if total is None else total
