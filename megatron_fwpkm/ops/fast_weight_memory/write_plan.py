"""Which slots every piece touches, and how its (token, slot) pairs sort by slot: one sort for a whole call.

Shapes are static: no number of a plan reaches the host, which never waits for a GPU. A segment (one slot touched by one
piece) is known by the position of its first pair in the sorted list; there is room for as many segments as pairs.

Shapes: T rows read by all pieces, J = heads * topk pairs per row, P = T * J pairs, counted row by row.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor


class ValuePiece(NamedTuple):
    """Row numbers of one piece, where a row is a (token, sequence) pair and time comes first.

    Attributes:
        start: first of the piece's rows among the rows read by all pieces.
        stop: one past its last.
        emit_start: the first row that is returned; all later rows of the piece are.
        write_stop: rows [start, write_stop) are written.
        count_start: the first row that counts as a reader of its slots.
        count_stop: one past the last that counts.
        token: row `start`'s position in the stream (token * B + sequence).
        number: of the piece.
        first_read: where its reads begin among those that all pieces return.
        first_error: where its written rows begin among those of all pieces.
        write: number of its write, among the pieces that write.
    """

    start: int
    stop: int
    emit_start: int
    write_stop: int
    count_start: int
    count_stop: int
    token: int
    number: int
    first_read: int
    first_error: int
    write: int

    @property
    def rows(self) -> int:
        """Rows read."""
        return self.stop - self.start

    @property
    def written(self) -> int:
        """Rows written."""
        return self.write_stop - self.start

    @property
    def first_kept(self) -> int:
        """The first row that is returned, counted from the piece's first."""
        return self.emit_start - self.start


class WritePlan(NamedTuple):
    """The pairs of all pieces, sorted by piece and slot. A piece of rows [start, stop) has positions [start*J, stop*J).

    Attributes:
        pair_slots: [T, J] int64, the slot of every pair, unsorted.
        order: [P] int64, the pair at every position; rows ascend within a segment, which fixes the order of summation.
        slots: [P] int64, its slot.
        heads: [P] int64, the first position of its segment.
        lengths: [P] int64, the number of pairs of its segment.
        counts: [P] int64, the readers of its segment that count, at least 1.
        places: [P] int64, for every *pair* the first position of its segment.
        is_head: [P] bool, whether a position is the first of its segment.
    """

    pair_slots: Tensor
    order: Tensor
    slots: Tensor
    heads: Tensor
    lengths: Tensor
    counts: Tensor
    places: Tensor
    is_head: Tensor


class AdjointPlan(NamedTuple):
    """Where the gradient of the table is kept in backward: a row for each distinct slot of the whole call.

    Attributes:
        rows: [P] int64, for every pair the row of its slot.
        slots: [min(P, num_slots)] int64, the slot of every row, ascending; `num_slots` for rows that are not in use.
        order: [P] int64, positions of the write plan sorted by slot, pieces ascending within a slot.
    """

    rows: Tensor
    slots: Tensor
    order: Tensor

    def on_rows(self, plan: WritePlan) -> WritePlan:
        """The plan for a table that has only these rows, in this order."""
        return plan._replace(pair_slots=self.rows.view_as(plan.pair_slots), slots=self.rows[plan.order])

    def links(self, plan: WritePlan, wants_table: bool) -> tuple[Tensor, Tensor]:
        """Which rows other pieces have to do with.

        Args:
            plan: of the writes.
            wants_table: the gradient of the initial table is asked for.

        Returns:
            sources: [P] int64, for every pair the row that holds its slot's gradient after its piece, or -1 where no
                later piece reads the slot and the gradient is zero.
            sinks: [P] int64, for every pair the row to which its piece adds, or -1 where nobody asks for the sum: no
                earlier piece reads the slot and the table itself needs no gradient.
        """
        heads, lengths, _ = _segments(plan.slots[self.order])
        pairs, first = plan.order[self.order], plan.heads[self.order]
        nowhere = self.rows.new_full((), -1)

        def rows_where(touched: Tensor) -> Tensor:
            """Rows of the touched pairs, and a row that nobody uses elsewhere."""
            return torch.where(torch.empty_like(touched).scatter_(0, pairs, touched), self.rows, nowhere)

        # Positions of a slot ascend: those outside the segment of one piece belong to other pieces.
        sources = rows_where(self.order[heads + lengths - 1] >= first + plan.lengths[self.order])
        return sources, self.rows if wants_table else rows_where(self.order[heads] < first)


def _is_head(ordered: Tensor) -> Tensor:
    """Whether a position of a sorted list holds another number than the one before."""
    is_head = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=is_head[1:])
    return is_head


def _segments(ordered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First position and length of the segment of every position of a sorted list, and whether it is the first."""
    is_head = _is_head(ordered)
    heads, ends = _searched_bounds(ordered) if ordered.is_cuda else _scanned_bounds(is_head)
    return heads, ends - heads, is_head


def _searched_bounds(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """First position of every segment and of the next: a search per position, where a scan is the work of one block."""
    return torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)


def _scanned_bounds(is_head: Tensor) -> tuple[Tensor, Tensor]:
    """The same by running extremes: on a CPU six times as fast."""
    total = is_head.shape[0]
    positions = torch.arange(total, device=is_head.device)
    heads = positions.masked_fill(~is_head, 0).cummax(0).values
    # A segment ends where the next one begins: a running minimum from the right.
    is_last = is_head.roll(-1)
    return heads, (positions + 1).masked_fill(~is_last, total).flip(0).cummin(0).values.flip(0)


def sort_keys(slot_indices: Tensor, pieces: list[ValuePiece], num_slots: int) -> tuple[Tensor, Tensor]:
    """Sort the pairs of all pieces by (piece, slot), rows ascending.

    Args:
        slot_indices: [T, J] int64.
        pieces: consecutive, covering all T rows.
        num_slots: rows of the table.

    Returns:
        The keys piece * num_slots + slot, ascending, and the pair of each, both [P].
    """
    # A radix sort's time is that of its digits.
    last = len(pieces) * num_slots
    dtype = torch.int32 if last <= torch.iinfo(torch.int32).max else torch.int64
    numbers = torch.arange(0, last, num_slots, device=slot_indices.device)
    keys = torch.empty(slot_indices.shape, dtype=dtype, device=slot_indices.device)
    for rows, run in itertools.groupby(pieces, key=lambda piece: piece.rows):
        equal = list(run)
        part, shape = slice(equal[0].start, equal[-1].stop), (len(equal), rows, slot_indices.shape[1])
        added = numbers[equal[0].number : equal[-1].number + 1].view(-1, 1, 1)
        torch.add(slot_indices[part].view(shape), added, out=keys[part].view(shape))
    ordered, order = keys.flatten().sort(stable=True)
    return ordered, order


def count_readers(order: Tensor, heads: Tensor, lengths: Tensor, pieces: list[ValuePiece], width: int) -> Tensor:
    """[P] int64, the readers that count of the segment of every position, at least 1.

    Args:
        order: see `WritePlan`, as the next two.
        heads: see there.
        lengths: see there.
        pieces: the call's.
        width: J.
    """
    if all(piece.count_start <= piece.start and piece.count_stop >= piece.stop for piece in pieces):
        return lengths
    counted = order.new_zeros(pieces[-1].stop, width)
    for piece in pieces:
        counted[piece.count_start : piece.count_stop] = 1
    running = counted.flatten()[order].cumsum(0)
    before = torch.cat([running.new_zeros(1), running])
    return (before[heads + lengths] - before[heads]).clamp_(min=1)


def make_write_plan(slot_indices: Tensor, pieces: list[ValuePiece], num_slots: int) -> WritePlan:
    """Sort the pairs of all pieces by (piece, slot).

    Args:
        slot_indices: [T, J] int64.
        pieces: consecutive, covering all T rows.
        num_slots: rows of the table.
    """
    ordered, order = sort_keys(slot_indices, pieces, num_slots)
    heads, lengths, is_head = _segments(ordered)
    counts = count_readers(order, heads, lengths, pieces, slot_indices.shape[1])
    places = torch.empty_like(heads).scatter_(0, order, heads)
    slots = slot_indices.flatten()[order]
    return WritePlan(slot_indices, order, slots, heads, lengths, counts, places, is_head)


def make_adjoint_plan(plan: WritePlan, num_slots: int, counted: bool = False) -> AdjointPlan:
    """Number the distinct slots of a call, ascending.

    Args:
        plan: of the call.
        num_slots: rows of its table.
        counted: leave out the rows that are not in use; the host waits to count them.
    """
    # Stable, so that the pieces of a slot ascend.
    ordered, order = plan.slots.sort(stable=True)
    rows = _is_head(ordered).cumsum(0) - 1
    slots = plan.slots.new_full((min(ordered.shape[0], num_slots),), num_slots).scatter_(0, rows, ordered)
    per_pair = torch.empty_like(rows).scatter_(0, plan.order[order], rows)
    if counted:
        slots = slots[: int((slots < num_slots).sum())]
    return AdjointPlan(per_pair, slots, order)
