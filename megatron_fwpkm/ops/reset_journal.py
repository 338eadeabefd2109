"""The journal that makes a reset of the memory cheap, and never makes the host wait for a GPU."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .undo_log import UndoLog

SPARE_ROWS = 256
"""Rows that take what is not new; they are many so that a GPU does not write one row all the time."""


class ResetJournal:
    """Remembers the first value of every slot that was written since the last reset.

    A reset then copies back the rows that a step can touch, and not the whole table.

    A GPU keeps to itself how many slots are new. There all shapes follow from the number of rows that were recorded:
    new rows go behind those that are in the journal, others into spare rows. On a CPU they are counted.

    Args:
        num_slots: rows of the values table.
        device: where the table lives.
        room: slots that are expected between two resets; more take their room when they come.
        counts: count new slots; by default only where no host waits for the count.
    """

    def __init__(
        self, num_slots: int, device: torch.device | str = "cpu", *, room: int = 0, counts: bool | None = None
    ) -> None:
        self.touched = torch.zeros(num_slots, dtype=torch.bool, device=device)
        """[num_slots] bool, True for slots written since the last reset."""
        self._counts = self.touched.device.type == "cpu" if counts is None else counts
        self._room = min(room, num_slots)
        self._slots: Tensor | None = None  # [room + spare] int64
        self._old_values: Tensor | None = None  # [room + spare, value_dim]
        self._used = 0  # at most so many entries are in use
        self._last = torch.full((), -1, device=device)  # the last entry in use, where they are not counted
        self._old_sub_keys: Tensor | None = None

    @property
    def old_sub_keys(self) -> Tensor | None:
        """The sub-keys before the first recorded update, or None when none was recorded."""
        return self._old_sub_keys

    def slots(self) -> Tensor:
        """The touched slots [U]; on a GPU some are named several times."""
        if self._slots is None or not self._used:
            return torch.zeros(0, dtype=torch.int64, device=self.touched.device)
        slots = self._slots[: self._used]
        return slots if self._counts else torch.where(self._unused(), slots[0], slots)

    def slots_and_values(self) -> tuple[Tensor, Tensor] | None:
        """The touched slots [U] and their first values [U, value_dim], or None if there are none."""
        if self._old_values is None or not self._used:
            return None
        old_values = self._old_values[: self._used]
        if self._counts:
            return self.slots(), old_values
        first = old_values[0].clone()
        return self.slots(), torch.where(self._unused().unsqueeze(1), first, old_values, out=old_values)

    def _unused(self) -> Tensor:
        return torch.arange(self._used, device=self.touched.device) > self._last

    @torch.no_grad()
    def record(self, undo_log: UndoLog) -> None:
        """Add the writes of one call. Calls must be recorded in the order they happened."""
        if self._counts:
            for number in range(len(undo_log.rows)):
                self.record_rows(*undo_log.write(number))
        elif undo_log.rows:
            self._record_first(undo_log.rows, undo_log.old_values, undo_log.sources)
        if undo_log.old_sub_keys is not None:
            self.record_sub_keys(undo_log.old_sub_keys)

    @torch.no_grad()
    def record_rows(self, rows: Tensor, old_values: Tensor) -> None:
        """Add `rows` [U] that were just written and held `old_values` [U, value_dim] before."""
        if not self._counts:
            self._record_first([rows], [old_values], [])
            return
        new = (~self.touched[rows]).nonzero().squeeze(1)
        if not new.numel():
            return
        start, stop = self._used, self._used + new.numel()
        kept_slots, kept_values = self._make_room(stop, old_values)
        # With `out` given, index_select is faster on CPU than without.
        torch.index_select(rows, 0, new, out=kept_slots[start:stop])
        torch.index_select(old_values, 0, new, out=kept_values[start:stop])
        self.touched.index_fill_(0, kept_slots[start:stop], True)
        self._used = stop

    def _record_first(self, rows: list[Tensor], old_values: list[Tensor], sources: list[Tensor]) -> None:
        """Add the first entry of every slot that is not in the journal; shapes do not depend on which these are."""
        slots, num_slots = rows[0] if len(rows) == 1 else torch.cat(rows), self.touched.shape[0]
        if not slots.shape[0]:
            return
        self._used = min(self._used + slots.shape[0], num_slots)
        kept_slots, kept_values = self._make_room(self._used, old_values[0])
        positions = torch.arange(slots.shape[0], device=slots.device)
        first = slots.new_full((num_slots,), slots.shape[0]).scatter_reduce_(0, slots, positions, "amin")
        is_new = (first[slots] == positions) > self.touched[slots]
        places = is_new.cumsum(0) + self._last
        self._last = places[-1].clone()
        places = torch.where(is_new, places, self._spare_places(positions))
        kept_slots.index_copy_(0, places, slots)
        self.touched.index_fill_(0, slots, True)
        parts = list(places.split([part.shape[0] for part in rows]))
        if sources and all(old is old_values[0] for old in old_values):
            old_values, sources, parts = old_values[:1], [torch.cat(sources)], [places]
        for number, old in enumerate(old_values):
            part = parts[number]
            if sources:
                # Spare places come last: of the rows with the same old value the new one counts, if there is one.
                entries = torch.arange(old.shape[0], device=old.device)
                part = self._spare_places(entries).scatter_reduce_(0, sources[number], part, "amin")
            kept_values.index_copy_(0, part, old)

    def _spare_places(self, positions: Tensor) -> Tensor:
        return positions % SPARE_ROWS + self._room

    def _make_room(self, wanted: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The slots and values of the journal, with room for `wanted` of them."""
        slots, values = self._slots, self._old_values
        if slots is None or values is None or len(slots) - SPARE_ROWS < wanted:
            # On a CPU, where nothing is known before it happens, the next ones find room, too.
            self._room = max(self._room, wanted, min(2 * wanted, len(self.touched)) if self._counts else 0)
            self._slots = torch.empty(self._room + SPARE_ROWS, dtype=torch.int64, device=like.device)
            self._old_values = like.new_empty(self._room + SPARE_ROWS, like.shape[1])
            if slots is not None and values is not None:
                held = len(slots) - SPARE_ROWS
                self._slots[:held], self._old_values[:held] = slots[:held], values[:held]
            slots, values = self._slots, self._old_values
        return slots, values

    def record_sub_keys(self, old_sub_keys: Tensor) -> None:
        """Add an update of the sub-keys, which were `old_sub_keys` before it. Only the first one is kept."""
        if self._old_sub_keys is None:
            self._old_sub_keys = old_sub_keys.clone()

    def fork(self) -> ResetJournal:
        """A journal that goes on from here, while this one stays as it is and records nothing."""
        other = copy.copy(self)
        other.touched, other._last = self.touched.clone(), self._last.clone()
        if self._used and self._slots is not None and self._old_values is not None:
            other._slots, other._old_values = self._slots.clone(), self._old_values.clone()
        return other

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
            changed = self.slots_and_values()
            if changed is not None:
                values.index_copy_(0, *changed)
                self.touched.index_fill_(0, changed[0], False)
                self._last.fill_(-1)
            if sub_keys is not None and self._old_sub_keys is not None:
                sub_keys.copy_(self._old_sub_keys)
        self._used, self._old_sub_keys = 0, None
