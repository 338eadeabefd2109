"""Undo log of in-place writes: what puts the tables back as they were before one call."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .state import FastWeightState


@dataclass(frozen=True)
class UndoLog:
    """Old values of everything that one in-place call wrote, in the order of the writes.

    Attributes:
        rows: for each write, the slots it touched, [U] int64; distinct without `sources`.
        old_values: for each write, [U, value_dim]: what these slots held just before it, where `sources` says so.
        old_sub_keys: [heads, 2, num_subkeys, key_dim / 2] before the call, or None when the call moved no key.
        sources: for each write, the number of the entry that holds the old value of each row, [U] int64, counted from
            that of the first row, which has its own; empty when every row has. The Triton kernels never tell the host
            how many slots a write touches: their log has room for the worst case, names slots several times, and holds
            the old value at the first of them.
    """

    rows: list[Tensor] = field(default_factory=list)
    old_values: list[Tensor] = field(default_factory=list)
    old_sub_keys: Tensor | None = None
    sources: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor, old_values: Tensor, sources: Tensor | None = None) -> None:
        """Add one write; `sources` is None when every row has its own old value."""
        self.rows.append(rows)
        self.old_values.append(old_values)
        if sources is not None:
            self.sources.append(sources)

    def write(self, number: int) -> tuple[Tensor, Tensor]:
        """Slots [U] of a write and what each held [U, value_dim]; slots that are named twice have the same values."""
        rows, old_values = self.rows[number], self.old_values[number]
        if not self.sources:
            return rows, old_values
        sources = self.sources[number]
        return rows, old_values.index_select(0, sources - sources[:1])

    def undo_(self, state: FastWeightState) -> None:
        """Restore, bit for bit and in place, the tables that the call was given; no host waits for a GPU.

        Args:
            state: holds the tables to restore. Calls must be undone in the reverse of their order.
        """
        with torch.no_grad():
            for number in reversed(range(len(self.rows))):
                state.values.index_copy_(0, *self.write(number))
            if self.old_sub_keys is not None:
                state.sub_keys.copy_(self.old_sub_keys)
