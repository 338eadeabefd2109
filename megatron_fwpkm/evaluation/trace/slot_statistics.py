"""How the slots of a memory are used along a text: a few numbers for every slot, however long the text is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .slot_reads import SlotReads, SlotWrites

AGE_BINS = 32
"""Bin i of a histogram holds the ages from 2 ** i to 2 ** (i + 1) - 1 tokens."""
_CURVE_POINTS = 64


class SlotStatistics:
    """Counts of one layer with S slots and H heads.

    Attributes:
        usage: float64 [H, S], the weights with which slots were read.
        last: int64 [S], number of the last token that wrote a slot; -1 for none.
        most_writers: int64 [S], tokens that wrote a slot within one read of the text, the most of all reads.
        ages: int64 [AGE_BINS], all reads of written slots by the tokens since their last writer.
    """

    def __init__(self, slots: int, heads: int) -> None:
        self.usage = torch.zeros(heads, slots, dtype=torch.float64)
        self.last = torch.full((slots,), -1)
        self.most_writers = torch.zeros(slots, dtype=torch.int64)
        self.ages = torch.zeros(AGE_BINS, dtype=torch.int64)
        self._writers = torch.zeros(slots, dtype=torch.int64)

    def begin_read(self) -> None:
        """The text begins again: its tokens are not counted as other writers."""
        self._writers.zero_()

    def read(self, first: int, reads: SlotReads) -> None:
        """Count what the tokens from number `first` on read."""
        for head, usage in enumerate(self.usage):
            usage.index_add_(0, reads.slots[:, head].flatten(), reads.weights[:, head].flatten().double())
        ages = self.age_of(torch.arange(first, first + len(reads.slots)).view(-1, 1, 1), reads.slots)
        self.ages += age_histogram(ages[ages > 0])

    def write(self, written: SlotWrites) -> None:
        """Count a write."""
        count = len(written.tokens)
        places = torch.arange(count).view(-1, 1, 1).expand_as(written.slots)
        pairs = (written.slots * count + places).unique()
        self._writers.index_add_(0, pairs // count, torch.ones_like(pairs))
        self.most_writers = torch.maximum(self.most_writers, self._writers)
        tokens = written.tokens.view(-1, 1, 1).expand_as(written.slots)
        self.last.scatter_reduce_(0, written.slots.flatten(), tokens.flatten(), "amax")

    def age_of(self, tokens: Tensor, slots: Tensor) -> Tensor:
        """Tokens since the last writer of slots that are read by `tokens`; 0 where nobody wrote."""
        last = self.last[slots]
        return torch.where(last < 0, 0, tokens - last)

    def summary(self) -> dict[str, Any]:
        """Coverage, collisions and usage as plain values; fractions are of the slots, divergences in nats."""
        pooled, slots = self.usage.sum(0), self.usage.shape[1]
        written, collided = self.most_writers > 0, self.most_writers > 1
        total = float(pooled.sum())
        return {
            "slots": slots,
            "written": int(written.sum()) / slots,
            "read": int((pooled > 0).sum()) / slots,
            "collided": int(collided.sum()) / max(1, int(written.sum())),
            "reads_of_collided": float(pooled[collided].sum()) / total if total else 0.0,
            "kl_to_uniform": divergence_from_uniform(pooled),
            "kl_to_uniform_by_head": [divergence_from_uniform(usage) for usage in self.usage],
            "ages": self.ages.tolist(),
            "usage_curve": _curve(pooled),
        }


def divergence_from_uniform(usage: Tensor) -> float:
    """KL divergence, in nats, of slots used in proportion to `usage` [S] from slots used alike; 0 without any use."""
    total = usage.sum()
    if not total:
        return 0.0
    share = usage[usage > 0] / total
    return float((share * torch.log(share * len(usage))).sum())


def age_histogram(ages: Tensor) -> Tensor:
    """int64 [AGE_BINS] of ages from 1 on."""
    bins = torch.log2(ages.flatten().double()).floor().long().clamp(max=AGE_BINS - 1)
    return torch.bincount(bins, minlength=AGE_BINS)


def _curve(usage: Tensor) -> list[list[float]]:
    """Usage by rank: [rank from 1, its share in all reads], at ranks that are evenly spaced as logarithms."""
    order = usage.sort(descending=True).values / max(float(usage.sum()), 1e-300)
    exponents = range(_CURVE_POINTS)
    ranks = sorted({round(math.exp(math.log(len(usage)) * i / (_CURVE_POINTS - 1))) for i in exponents})
    return [[rank, float(order[rank - 1])] for rank in ranks if order[rank - 1] > 0]
