"""Rows of a table that one owner has of its own, over a base table that nobody writes.

A memory that has read T tokens has touched at most T * heads * topk of its n * n rows. So each of many owners keeps
the rows it has touched, and reads all others from a table that all of them share. Shapes: U rows of its own, D columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NONE = -1
"""The place of a slot whose row is the base's."""
_GROWTH = 1.5
"""Room that is made, by what is needed: a long text would otherwise copy its rows at every chunk."""


class RowOverlay:
    """The rows of one owner, in the order in which they were first touched.

    Rows are copied from the base when they are first asked for, and stand at their place from then on.

    Attributes:
        base: [num_slots, D], never written.

    Args:
        base: the table below.
        slots: [U] int64, distinct: slots with a row of their own; default none.
        rows: [U, D], theirs.
    """

    def __init__(self, base: Tensor, slots: Tensor | None = None, rows: Tensor | None = None):
        self.base = base
        self._rows = base.new_empty(0, base.shape[1]) if rows is None else rows
        self._slots = torch.empty(0, dtype=torch.int64, device=base.device) if slots is None else slots
        self._count = len(self._rows)
        self._places: Tensor | None = None  # [num_slots] int32, made with the first row
        if self._count:
            self._place(self._slots, 0)

    def __len__(self) -> int:
        """U, the number of rows of its own."""
        return self._count

    @property
    def table(self) -> Tensor:
        """[U, D] the rows, not a copy: writes to it are writes to the memory."""
        return self._rows[: self._count]

    @property
    def slots(self) -> Tensor:
        """[U] int64, the slot of every row."""
        return self._slots[: self._count]

    @property
    def nbytes(self) -> int:
        """Bytes of what is not shared with other owners, spare room included."""
        places = 0 if self._places is None else self._places.nbytes
        return self._rows.nbytes + self._slots.nbytes + places

    def own(self, slots: Tensor) -> Tensor:
        """Rows of `slots`, of any shape, as places in `table`, int64; rows that are not there yet are added."""
        if self._places is None or len(fresh := self.missing(slots)):
            self.add(slots.unique() if self._places is None else fresh)
        assert self._places is not None
        return self._places[slots].long()

    def missing(self, slots: Tensor) -> Tensor:
        """[F] ascending: those of `slots` that have no row yet."""
        if self._places is None:
            return slots.unique()
        return slots[self._places[slots] == _NONE].unique()

    def add(self, fresh: Tensor) -> None:
        """Copy the rows of `fresh` [F], distinct slots that have none, from the base."""
        start, stop = self._count, self._count + len(fresh)
        if stop > len(self._rows):
            room = min(len(self.base), int(_GROWTH * stop))
            rows, slots = self._rows, self._slots
            self._rows, self._slots = rows.new_empty(room, rows.shape[1]), slots.new_empty(room)
            self._rows[:start], self._slots[:start] = rows[:start], slots[:start]
        torch.index_select(self.base.detach(), 0, fresh, out=self._rows[start:stop])
        self._slots[start:stop] = fresh
        self._count = stop
        self._place(fresh, start)

    def find(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Which of `slots` have a row of their own, and its place in `table`; any place for the others."""
        if self._places is None:
            return torch.zeros_like(slots, dtype=torch.bool), torch.zeros_like(slots)
        places = self._places[slots].long()
        return places != _NONE, places.clamp_(min=0)

    def gather(self, slots: Tensor) -> Tensor:
        """[..., D] the rows of `slots`, its own or the base's; nothing is added."""
        found = self.base[slots]
        if self._count:
            own, places = self.find(slots)
            found = torch.where(own.unsqueeze(-1), self.table[places], found)
        return found

    def initial_rows(self, start: int) -> Tensor:
        """[U, D] the rows before a call that added those from `start` on: differentiable towards the base."""
        before = self.table.detach().clone()
        if not (self.base.requires_grad and torch.is_grad_enabled()):
            return before
        return torch.cat([before[:start], self.base.index_select(0, self.slots[start:].clone())])

    def replace(self, table: Tensor) -> None:
        """Put `table` [U, D] in the place of the rows."""
        self._rows, self._slots = table, self.slots

    def copy(self) -> RowOverlay:
        """An overlay of the same rows, which are copied; the base is shared."""
        twin = RowOverlay(self.base)
        twin._rows, twin._slots, twin._count = self.table.clone(), self.slots.clone(), self._count
        twin._places = None if self._places is None else self._places.clone()
        return twin

    def touched(self) -> tuple[Tensor, Tensor]:
        """Slots [U], ascending, and their rows [U, D]; copies."""
        slots, order = self.slots.sort()
        return slots, self.table[order]

    def whole(self) -> Tensor:
        """[num_slots, D] the table as its owner sees it, a copy."""
        return self.base.detach().index_copy(0, self.slots, self.table.detach())

    def _place(self, slots: Tensor, start: int) -> None:
        if self._places is None:
            self._places = torch.full((len(self.base),), _NONE, dtype=torch.int32, device=self.base.device)
        self._places[slots] = torch.arange(start, start + len(slots), dtype=torch.int32, device=slots.device)
