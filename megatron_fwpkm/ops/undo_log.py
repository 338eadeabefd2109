"""Undo log of in-place writes, and the journal that makes a reset of the memory cheap."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .state import FastWeightState


@dataclass(frozen=True)
class UndoLog:
    """Old values of everything that one in-place call wrote, in the order of the writes.

    Attributes:
        rows: for each write, the slots it touched, [U] int64; distinct where `in_use`.
        old_values: for each write, what these slots held just before it, [U, value_dim], where `in_use`.
        old_sub_keys: [heads, 2, num_subkeys, key_dim / 2] before the call, or None when the call moved no key.
        in_use: for each write, which entries of its rows and old values count, [U] bool; empty when all do. The Triton
            kernels never tell the host how many slots a write touches, so their log has room for the worst case.
    """

    rows: list[Tensor] = field(default_factory=list)
    old_values: list[Tensor] = field(default_factory=list)
    old_sub_keys: Tensor | None = None
    in_use: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor, old_values: Tensor, in_use: Tensor | None = None) -> None:
        """Add one write; `in_use` is None when all its entries are."""
        self.rows.append(rows)
        self.old_values.append(old_values)
        if in_use is not None:
            self.in_use.append(in_use)

    def write(self, number: int) -> tuple[Tensor, Tensor]:
        """Distinct slots [U] of a write and their old values [U, value_dim]; may wait for a GPU."""
        rows, old_values = self.rows[number], self.old_values[number]
        if not self.in_use:
            return rows, old_values
        return rows[self.in_use[number]], old_values[self.in_use[number]]

    def undo_(self, state: FastWeightState) -> None:
        """Restore, bit for bit and in place, the tables that the call was given.

        Args:
            state: holds the tables to restore. Calls must be undone in the reverse of their order.
        """
        with torch.no_grad():
            for number in reversed(range(len(self.rows))):
                state.values.index_copy_(0, *self.write(number))
            if self.old_sub_keys is not None:
                state.sub_keys.copy_(self.old_sub_keys)


class ResetJournal:
    """Remembers the first value of every slot that was written since the last reset.

    A reset then copies back the touched rows only; memory is proportional to them and not to the table.

    Args:
        num_slots: rows of the values table.
        device: where the table lives.
    """

    def __init__(self, num_slots: int, device: torch.device | str = "cpu") -> None:
        self.touched = torch.zeros(num_slots, dtype=torch.bool, device=device)
        """[num_slots] bool, True for slots written since the last reset."""
        self._rows: list[Tensor] = []
        self._old_values: list[Tensor] = []
        self._old_sub_keys: Tensor | None = None

    @property
    def num_touched(self) -> int:
        """Number of slots written since the last reset."""
        return sum(rows.numel() for rows in self._rows)

    @property
    def old_sub_keys(self) -> Tensor | None:
        """The sub-keys before the first recorded update, or None when none was recorded."""
        return self._old_sub_keys

    def rows_and_values(self) -> tuple[Tensor, Tensor] | None:
        """The touched slots [U] and their initial values [U, value_dim] (for a checkpoint), or None if untouched."""
        if not self._rows:
            return None
        return torch.cat(self._rows), torch.cat(self._old_values)

    def record(self, undo_log: UndoLog) -> None:
        """Add the writes of one call; waits for a GPU. Calls must be recorded in the order they happened."""
        for number in range(len(undo_log.rows)):
            self.record_rows(*undo_log.write(number))
        if undo_log.old_sub_keys is not None:
            self.record_sub_keys(undo_log.old_sub_keys)

    def record_rows(self, rows: Tensor, old_values: Tensor) -> None:
        """Add distinct `rows` [U] that were just written and held `old_values` [U, value_dim] before."""
        is_new = ~self.touched[rows]
        new_rows = rows[is_new]
        if new_rows.numel():
            self.touched[new_rows] = True
            self._rows.append(new_rows)
            self._old_values.append(old_values[is_new])

    def record_sub_keys(self, old_sub_keys: Tensor) -> None:
        """Add an update of the sub-keys, which were `old_sub_keys` before it. Only the first one is kept."""
        if self._old_sub_keys is None:
            self._old_sub_keys = old_sub_keys.clone()

    def restore_(self, values: Tensor, sub_keys: Tensor | None = None) -> None:
        """Put the initial table back, in place and bit for bit, and start anew.

        Args:
            values: [num_slots, value_dim], the table whose writes were recorded.
            sub_keys: the sub-keys to restore as well; leave out to keep them as they are.

        Raises:
            ValueError: the table has another number of slots than the journal.
        """
        if values.shape[0] != self.touched.shape[0]:
            raise ValueError(
                f"this journal is for a table of {self.touched.shape[0]} slots and cannot restore one of "
                f"{values.shape[0]}; make it with ResetJournal(num_slots={values.shape[0]})"
            )
        with torch.no_grad():
            for rows, old_values in zip(self._rows, self._old_values, strict=True):
                values.index_copy_(0, rows, old_values)
                self.touched[rows] = False
            if sub_keys is not None and self._old_sub_keys is not None:
                sub_keys.copy_(self._old_sub_keys)
        self._rows, self._old_values, self._old_sub_keys = [], [], None
