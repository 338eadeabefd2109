"""The steps of the values' chain in torch: sums over the distinct slots of a piece.

Shapes: T rows read by all pieces, J = heads * topk, P = T * J pairs, U distinct slots of a piece, D columns, S stream
rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rounding import round_rows
from ..value_chain import Position, ValueInputs, ValueSteps
from ..write_plan import AdjointPlan
from .row_sums import gather_rows, paired_dots, sum_rows
from .slot_segments import Segments, find_segments


class _Pass:
    """What both directions know."""

    def __init__(self, inputs: ValueInputs, positions: list[Position]) -> None:
        self.inputs, self.plan, self.positions = inputs, inputs.plan, positions
        self.segments: Segments = inputs.layout
        self.width = inputs.slot_weights.shape[1]
        self.slot_weights = inputs.slot_weights.flatten()
        most_rows = max(position.rows for position in positions)
        device = inputs.slot_weights.device
        self.row_starts = torch.arange(0, most_rows * self.width, self.width, device=device)

    def ranges(self, position: Position) -> tuple[slice, slice]:
        """Segments and pairs of a piece."""
        bounds, piece = self.segments.bounds, position.piece
        segments = slice(bounds[position.number], bounds[position.number + 1])
        return segments, slice(piece.start * self.width, piece.stop * self.width)


class _Forward(_Pass):
    """One forward pass; see `ForwardSteps`."""

    def __init__(
        self, inputs: ValueInputs, table: Tensor, positions: list[Position], slots: Tensor, keep: bool
    ) -> None:
        super().__init__(inputs, positions)
        self.table = table
        starts = self.segments.starts
        self.rows = self.plan.slots[starts]
        self.slots = self.rows if slots is self.plan.slots else slots[starts]
        last = positions[-1]
        self.reads = inputs.slot_weights.new_empty(last.first_read + last.rows - last.first_kept, table.shape[1])
        self.old_rows: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.squares = [self.reads.new_zeros(0)]
        self.changes = (self.segments.steps * self.slot_weights * self._pair_write_weights())[self.plan.order]
        self.token_of_pair = self.plan.order // self.width

    def _pair_write_weights(self) -> Tensor:
        """Write weights of stream rows [S] as weights of pairs [P]; zero for rows that are not written."""
        weights = torch.zeros_like(self.inputs.slot_weights)
        for position in self.positions:
            piece, stream = position.piece, position.piece.token
            written = self.inputs.write_weights[stream : stream + position.written]
            weights[piece.start : piece.write_stop] = written.unsqueeze(1)
        return weights.flatten()

    def run(self, position: Position, update: bool, keep_rows: bool) -> None:
        """Copy the rows of the piece out, read from the copy, and write what it has become."""
        segments, pairs = self.ranges(position)
        old = gather_rows(self.table, self.rows[segments])
        wide = old.to(self.slot_weights.dtype)
        places, starts = self.segments.places[pairs], self.row_starts[: position.rows]
        read = sum_rows(wide, places, starts, self.slot_weights[pairs])
        self.reads[position.first_read :][: position.rows - position.first_kept] = read[position.first_kept :]
        if keep_rows:
            self.old_rows.append(old)
        if not position.written:
            return
        token = position.piece.token
        error = read[: position.written] - self.inputs.targets[token + self.inputs.shift :][: position.written]
        self.errors.append(error)
        self.squares.append(error.square().sum(-1).mul_(self.inputs.write_weights[token : token + position.written]))
        if update:
            self._write(position, wide, error)

    def _write(self, position: Position, rows: Tensor, error: Tensor) -> None:
        """Change `rows` [U, D] of the piece and put them back."""
        segments, pairs = self.ranges(position)
        # Rows that are read but not written have weight zero; the clamp only keeps their address legal.
        tokens = (self.token_of_pair[pairs] - position.piece.start).clamp_(max=position.written - 1)
        change = sum_rows(error, tokens, self.segments.starts[segments] - pairs.start, self.changes[pairs])
        torch.sub(rows, change, out=change)
        if self.inputs.rounding is not None:
            change = round_rows(change, self.slots[segments], self.inputs.rounding, position.write)
        self.table.index_copy_(0, self.rows[segments], change)

    def overwritten(self, position: Position) -> tuple[Tensor, Tensor, None]:
        """Slots and rows of the piece that was just written; all are in use."""
        return self.slots[self.ranges(position)[0]], self.old_rows[-1], None

    def squared_errors(self) -> Tensor:
        """Squared length of the error of every written token, [E]."""
        return torch.cat(self.squares)


class _Backward(_Pass):
    """One backward pass; see `BackwardSteps`."""

    def __init__(
        self,
        inputs: ValueInputs,
        adjoint_plan: AdjointPlan,
        positions: list[Position],
        old_rows: list[Tensor],
        errors: list[Tensor],
        grad_reads: Tensor,
        wants_table: bool,
    ) -> None:
        super().__init__(inputs, positions)
        self.old_rows, self.errors, self.grad_reads = old_rows, errors, grad_reads
        columns, stream_rows = grad_reads.shape[1], inputs.write_weights.shape[0]
        self.adjoint_rows = adjoint_plan.rows[self.plan.order[self.segments.starts]]
        self.adjoint = grad_reads.new_zeros(adjoint_plan.slots.shape[0], columns)
        self.grad_slot_weights = torch.empty_like(self.slot_weights)
        self.grad_write_weights = torch.zeros_like(inputs.write_weights)
        self.grad_targets = grad_reads.new_zeros(stream_rows, columns)
        self.sorted_weights = self.slot_weights[self.plan.order]
        self.sorted_owners = self.plan.order // self.width
        pairs = self.row_starts.shape[0] * self.width
        self.owners = torch.arange(pairs, device=grad_reads.device) // self.width

    def run(self, position: Position, written: bool, wanted: bool) -> None:
        """Gradients of one piece's rows, and of the table before it."""
        segments, pairs = self.ranges(position)
        piece, rows = position.piece, position.rows
        grad_read = self.grad_reads[position.first_read :][: rows - position.first_kept]
        if position.first_kept:
            unreturned = grad_read.new_zeros(position.first_kept, grad_read.shape[1])
            grad_read = torch.cat([unreturned, grad_read])
        if written:
            grad_read = self._through_write(position, grad_read)
            self.grad_slot_weights[piece.write_stop * self.width : pairs.stop] = 0
        places, starts, owners = self.segments.places[pairs], self.row_starts[:rows], self.owners[: rows * self.width]
        old = self.old_rows[position.number].to(grad_read.dtype)
        dots, grad_weights = paired_dots(grad_read, old, places, starts, owners), self.grad_slot_weights[pairs]
        if written:
            grad_weights += dots
        else:
            grad_weights.copy_(dots)
        if wanted:
            sorted_rows = self.sorted_owners[pairs] - piece.start
            starts = self.segments.starts[segments] - pairs.start
            change = sum_rows(grad_read, sorted_rows, starts, self.sorted_weights[pairs])
            self.adjoint.index_add_(0, self.adjoint_rows[segments], change)

    def _through_write(self, position: Position, grad_read: Tensor) -> Tensor:
        """Gradients of what a piece writes, and of its reads through what it writes."""
        piece, written = position.piece, position.written
        error = self.errors[position.write]
        pushed = self.adjoint.index_select(0, self.adjoint_rows[self.ranges(position)[0]])
        head = slice(piece.start * self.width, piece.write_stop * self.width)
        places, starts = self.segments.places[head], self.row_starts[:written]
        grad_written = sum_rows(pushed, places, starts, self.segments.steps[head] * self.slot_weights[head])
        tokens = slice(piece.token, piece.token + written)
        weights = self.inputs.write_weights[tokens].unsqueeze(1)
        self.grad_write_weights[tokens] = -(grad_written * error).sum(-1)
        grad_written.mul_(weights)
        self.grad_targets[piece.token + self.inputs.shift :][:written] = grad_written
        grad_read = grad_read.clone()
        grad_read[:written] -= grad_written
        dots = paired_dots(error * weights, pushed, places, starts, self.owners[: written * self.width])
        torch.mul(dots, -self.segments.steps[head], out=self.grad_slot_weights[head])
        return grad_read

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of slot weights, write weights and targets."""
        return self.grad_slot_weights.view_as(self.inputs.slot_weights), self.grad_write_weights, self.grad_targets


def _read_rows(table: Tensor, slots: Tensor, slot_weights: Tensor) -> Tensor:
    starts = torch.arange(0, slots.numel(), slots.shape[1], device=slots.device)
    if table.dtype == slot_weights.dtype:
        return sum_rows(table, slots.flatten(), starts, slot_weights.flatten())
    rows = gather_rows(table, slots.flatten()).to(slot_weights.dtype)
    return sum_rows(rows, torch.arange(slots.numel(), device=slots.device), starts, slot_weights.flatten())


VALUE_STEPS = ValueSteps(find_segments, _Forward, _Backward, _read_rows, counts_rows=True)
"""What `implementation="sparse"` adds to the driver of the values."""
