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
        rows: for each write, the slots it touched, [U] int64; distinct without `sources`. Places of an overlay's rows
            where the state has one.
        old_values: for each write, what these slots held just before it, [U, value_dim]; with `sources` in another
            order and with room to spare, maybe of all writes together.
        old_sub_keys: [heads, 2, num_subkeys, key_dim / 2] before the call, or None when the call moved no key.
        sources: for each write, which of its old values belongs to each of its rows, [U] int64; empty when they are in
            the same order. The Triton kernels never tell the host how many slots a write touches: they name a slot once
            for each of its readers.
    """

    rows: list[Tensor] = field(default_factory=list)
    old_values: list[Tensor] = field(default_factory=list)
    old_sub_keys: Tensor | None = None
    sources: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor, old_values: Tensor, sources: Tensor | None = None) -> None:
        """Add one write; `sources` is None when old values are in the order of the rows."""
        self.rows.append(rows)
        self.old_values.append(old_values)
        if sources is not None:
            self.sources.append(sources)

    def write(self, number: int) -> tuple[Tensor, Tensor]:
        """Slots [U] of a write and what each held [U, value_dim]; slots that are named twice have the same values."""
        rows, old_values = self.rows[number], self.old_values[number]
        if not self.sources:
            return rows, old_values
        return rows, old_values.index_select(0, self.sources[number])

    def undo_(self, state: FastWeightState) -> None:
        """Restore, bit for bit and in place, the tables that the call was given; no host waits for a GPU.

        Args:
            state: holds the tables to restore. Calls must be undone in the reverse of their order.
        """
        with torch.no_grad():
            for number in reversed(range(len(self.rows))):
                state.table.index_copy_(0, *self.write(number))
            if self.old_sub_keys is not None:
                state.sub_keys.copy_(self.old_sub_keys)
