"""The steps of the values' chain in torch: sums over the distinct slots of a piece.

Shapes: T rows read by all pieces, J = heads * topk, P = T * J pairs, U distinct slots of a piece, D columns, S stream
rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...named_ranges import named_range
from ...product_key.selection import block_length
from ..rounding import round_rows
from ..value_chain import ValueInputs, ValueSteps
from ..write_plan import AdjointPlan, ValuePiece, WritePlan, make_adjoint_plan, make_write_plan
from .adjoint_links import AdjointLinks
from .row_sums import gather_rows, paired_dots, put_rows, sum_rows


class Segments(NamedTuple):
    """The segments of a write plan without the room for those that do not exist, S of them.

    Attributes:
        bounds: segments of piece p are [bounds[p], bounds[p + 1]).
        starts: [S] first sorted pair of every segment.
        places: [P] segment of every pair, counted from the piece's first.
        steps: [P] step size of every pair, alpha of DESIGN 2.5: scale of its piece / readers of its slot.
    """

    bounds: list[int]
    starts: Tensor
    places: Tensor
    steps: Tensor


def find_segments(plan: WritePlan, pieces: list[ValuePiece], scales: Tensor) -> Segments:
    """Number the segments of a plan; the host waits once, to count them."""
    width = plan.pair_slots.shape[1]
    numbers = plan.is_head.cumsum(0)
    bounds = [0, *torch.stack([numbers[piece.stop * width - 1] for piece in pieces]).tolist()]
    numbers -= 1
    # All pairs of a segment name the same first one.
    starts = plan.heads.new_empty(bounds[-1]).scatter_(0, numbers, plan.heads)
    places = torch.empty_like(numbers).scatter_(0, plan.order, numbers)
    counts, steps = plan.counts[starts], scales.new_empty(places.shape)
    for number, piece in enumerate(pieces):
        first, pairs = bounds[number], slice(piece.start * width, piece.stop * width)
        places[pairs] -= first
        step = scales[number] / counts[first : bounds[number + 1]]
        torch.index_select(step, 0, places[pairs], out=steps[pairs])
    return Segments(bounds, starts, places, steps)


class _Pass:
    """What both directions know."""

    def __init__(self, inputs: ValueInputs) -> None:
        self.inputs, self.options, self.plan = inputs, inputs.options, inputs.options.plan
        self.segments: Segments = inputs.layout
        self.width = inputs.slot_weights.shape[1]
        self.slot_weights = inputs.slot_weights.flatten()
        most_rows = max(piece.rows for piece in self.options.pieces)
        device = inputs.slot_weights.device
        self.row_starts = torch.arange(0, most_rows * self.width, self.width, device=device)

    def ranges(self, piece: ValuePiece) -> tuple[slice, slice]:
        """Segments and pairs of a piece."""
        segments = slice(*self.segments.bounds[piece.number : piece.number + 2])
        return segments, slice(piece.start * self.width, piece.stop * self.width)


class SparseForward(_Pass):
    """One forward pass over a table, piece by piece.

    Attributes:
        reads: [returned rows, D].
        old_rows: rows of every piece before its write; what backward of the same steps takes.
        errors: [E, D] in parts, likewise.
    """

    def __init__(self, inputs: ValueInputs, table: Tensor, slots: Tensor, keep: bool) -> None:
        super().__init__(inputs)
        self.table = table
        starts = self.segments.starts
        self.rows = self.plan.slots[starts]
        self.slots = self.rows if slots is self.plan.slots else slots[starts]
        last = self.options.pieces[-1]
        self.reads = inputs.slot_weights.new_empty(last.first_read + last.rows - last.first_kept, table.shape[1])
        self.old_rows: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.squares = [self.reads.new_zeros(0)]
        self.changes = (self.segments.steps * self.slot_weights * self._pair_write_weights())[self.plan.order]
        self.token_of_pair = self.plan.order // self.width

    def _pair_write_weights(self) -> Tensor:
        """Write weights of stream rows [S] as weights of pairs [P]; zero for rows that are not written."""
        weights = torch.zeros_like(self.inputs.slot_weights)
        for piece in self.options.pieces:
            written = self.inputs.write_weights[piece.token :][: piece.written]
            weights[piece.start : piece.write_stop] = written.unsqueeze(1)
        return weights.flatten()

    def run(self, piece: ValuePiece, update: bool, keep_rows: bool) -> None:
        """Copy the rows of a piece out and read from the copy.

        With `update` write what it has become; with `keep_rows` keep the rows as they were.
        """
        segments, pairs = self.ranges(piece)
        with named_range("memory read"):
            old = gather_rows(self.table, self.rows[segments])
            wide = old.to(self.slot_weights.dtype)
            places, starts = self.segments.places[pairs], self.row_starts[: piece.rows]
            read = sum_rows(wide, places, starts, self.slot_weights[pairs])
            self.reads[piece.first_read :][: piece.rows - piece.first_kept] = read[piece.first_kept :]
        if keep_rows:
            self.old_rows.append(old)
        if not piece.written:
            return
        targets = self.inputs.targets[piece.token + self.options.shift :]
        error = read[: piece.written] - targets[: piece.written]
        self.errors.append(error)
        self.squares.append(error.square().sum(-1).mul_(self.inputs.write_weights[piece.token :][: piece.written]))
        if update:
            with named_range("memory write"):
                self._write(piece, wide, error)

    def _write(self, piece: ValuePiece, rows: Tensor, error: Tensor) -> None:
        """Change `rows` [U, D] of the piece and put them back."""
        segments, pairs = self.ranges(piece)
        # Rows that are read but not written have weight zero; the clamp only keeps their address legal.
        tokens = (self.token_of_pair[pairs] - piece.start).clamp_(max=piece.written - 1)
        weights, starts = self.changes[pairs], self.segments.starts[segments] - pairs.start
        # In blocks that a core's cache holds. A sum does not depend on those beside it.
        step = block_length(rows.shape[1], len(rows), rows.device)
        edges = [*starts[step::step].tolist(), len(tokens)] if len(rows) > step else [len(tokens)]
        first = 0
        for number, stop in enumerate(edges):
            block = slice(number * step, (number + 1) * step)
            summed = slice(first, stop)
            change = sum_rows(error, tokens[summed], starts[block] - first, weights[summed])
            torch.sub(rows[block], change, out=change)
            numbers = slice(segments.start + block.start, min(segments.stop, segments.start + block.stop))
            if self.options.rounding is not None:
                change = round_rows(change, self.slots[numbers], self.options.rounding, piece.write)
            put_rows(self.table, self.rows[numbers], change)
            first = stop

    def overwritten(self, piece: ValuePiece) -> tuple[Tensor, Tensor]:
        """An entry of the undo log: slots and old rows of the piece that was just written."""
        return self.slots[self.ranges(piece)[0]], self.old_rows[-1]

    def squared_errors(self) -> Tensor:
        """[E]: sums over D of write weight * error^2."""
        return torch.cat(self.squares)


class SparseBackward(_Pass):
    """One backward pass, last piece first.

    Attributes:
        adjoint: gradient of rows of the table after the piece at hand: of those that several pieces read, or, if the
            gradient of the table is asked for, of all rows of the adjoint plan.
    """

    def __init__(
        self,
        inputs: ValueInputs,
        adjoint_plan: AdjointPlan,
        old_rows: list[Tensor],
        errors: list[Tensor],
        grad_reads: Tensor,
        wants_table: bool,
    ) -> None:
        super().__init__(inputs)
        self.old_rows, self.errors, self.grad_reads = old_rows, errors, grad_reads
        columns, stream_rows = grad_reads.shape[1], inputs.write_weights.shape[0]
        links = AdjointLinks(self.plan, adjoint_plan, self.options.pieces, self.segments.starts, wants_table)
        self.sources, self.sinks = links.sources, links.sinks
        self.adjoint = grad_reads.new_zeros(links.num_rows, columns)
        self.grad_slot_weights = torch.empty_like(self.slot_weights)
        self.grad_write_weights = torch.zeros_like(inputs.write_weights)
        self.grad_targets = grad_reads.new_zeros(stream_rows, columns)
        pairs = self.row_starts.shape[0] * self.width
        self.owners = torch.arange(pairs, device=grad_reads.device) // self.width

    def run(self, piece: ValuePiece, written: bool, wanted: bool) -> None:
        """Gradients of a piece's rows, and of the table before it.

        With `written` later pieces read what it has written; with `wanted` earlier ones need the table's gradient.
        """
        pairs, rows = self.ranges(piece)[1], piece.rows
        grad_read = self.grad_reads[piece.first_read :][: rows - piece.first_kept]
        if piece.first_kept:
            unreturned = grad_read.new_zeros(piece.first_kept, grad_read.shape[1])
            grad_read = torch.cat([unreturned, grad_read])
        through_write = None
        if written:
            grad_read, *through_write = self._through_write(piece, grad_read)
        places, starts, owners = self.segments.places[pairs], self.row_starts[:rows], self.owners[: rows * self.width]
        old = self.old_rows[piece.number].to(grad_read.dtype)
        dots = paired_dots(grad_read, old, places, starts, owners)
        if through_write is not None:
            dots.index_add_(0, *through_write)
        self.grad_slot_weights[pairs] = dots
        if wanted:
            self._leave(piece, grad_read)

    def _leave(self, piece: ValuePiece, grad_read: Tensor) -> None:
        """Add the gradients of the rows a piece reads, for the pieces before it."""
        first, stop = self.sinks.bounds[piece.number : piece.number + 2]
        if first == stop:
            return
        pairs = slice(*self.sinks.pair_bounds[piece.number : piece.number + 2])
        numbers, starts = self.sinks.pairs[pairs], self.sinks.starts[first:stop] - pairs.start
        tokens = torch.div(numbers, self.width, rounding_mode="floor") - piece.start
        change = sum_rows(grad_read, tokens, starts, self.slot_weights[numbers])
        self.adjoint.index_add_(0, self.sinks.rows[first:stop], change)

    def _through_write(self, piece: ValuePiece, grad_read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of what a piece writes.

        Returns:
            Gradient of its reads, also through what it writes; pairs, counted from the piece's first, that later
            pieces have to do with, and the gradients of their slot weights through the write.
        """
        sources, written, error = self.sources, piece.written, self.errors[piece.write]
        pushed = self.adjoint.index_select(0, sources.rows[slice(*sources.bounds[piece.number : piece.number + 2])])
        pairs = slice(*sources.pair_bounds[piece.number : piece.number + 2])
        numbers, places = sources.pairs[pairs], sources.places[pairs]
        starts = sources.starts[piece.start : piece.write_stop] - pairs.start
        steps = self.segments.steps[numbers]
        grad_written = sum_rows(pushed, places, starts, steps * self.slot_weights[numbers])
        tokens = slice(piece.token, piece.token + written)
        weights = self.inputs.write_weights[tokens].unsqueeze(1)
        self.grad_write_weights[tokens] = -(grad_written * error).sum(-1)
        grad_written.mul_(weights)
        self.grad_targets[piece.token + self.options.shift :][:written] = grad_written
        grad_read = grad_read.clone()
        grad_read[:written] -= grad_written
        owners = torch.div(numbers, self.width, rounding_mode="floor") - piece.start
        dots = paired_dots(error * weights, pushed, places, starts, owners)
        return grad_read, numbers - piece.start * self.width, dots.mul_(steps.neg_())

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of slot weights [T, J], write weights [S] and targets [S, D]."""
        return self.grad_slot_weights.view_as(self.inputs.slot_weights), self.grad_write_weights, self.grad_targets


def _read_rows(table: Tensor, slots: Tensor, slot_weights: Tensor) -> Tensor:
    starts = torch.arange(0, slots.numel(), slots.shape[1], device=slots.device)
    if table.dtype == slot_weights.dtype:
        return sum_rows(table, slots.flatten(), starts, slot_weights.flatten())
    rows = gather_rows(table, slots.flatten()).to(slot_weights.dtype)
    return sum_rows(rows, torch.arange(slots.numel(), device=slots.device), starts, slot_weights.flatten())


def _plan_adjoint(plan: WritePlan, num_slots: int, wants_table: bool) -> AdjointPlan:
    """Only rows that are in use; they are the same whether or not the table's gradient is asked for."""
    return make_adjoint_plan(plan, num_slots, counted=True)


VALUE_STEPS = ValueSteps(
    make_write_plan,
    _plan_adjoint,
    find_segments,
    SparseForward,
    SparseBackward,
    _read_rows,
    counts_rows=True,
)
"""What `implementation="sparse"` adds to the driver of the values."""
