"""Reads and in-place writes of the values table, with the closed-form backward of DESIGN section 2.5.

The rows a piece reads are the rows it may write. They are copied out before the write (the undo log), so backward
needs neither the table nor a rewind of it: the table may have moved on, and does so under pipeline schedules.

Shapes: R rows read by all pieces (time first, then sequence), J = heads * topk, D = value_dim, S stream rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .precision import full_precision
from .rounding import round_rows
from .sparse.row_sums import gather_rows, paired_dots, sum_rows
from .triton_write_plan import TritonWritePlan
from .write_plan import ValuePiece, WritePlan


class ValueOptions(NamedTuple):
    """What the chain needs to know besides its tensors.

    Attributes:
        pieces: the rows of every piece.
        plan: their pairs, sorted; each chain has its own form of it.
        scales: [pieces], step size of every write before the division by a slot's readers.
        shift: stream rows from a token to its target: lookahead * B.
        frozen: nothing is written; the errors are still measured.
        undo_log: ``fp32``, ``bf16`` or ``recompute``, see :func:`fast_weight_memory`.
        rounding: what the rounding of a bfloat16 table depends on (``rounding.py``), None for other tables.
    """

    pieces: list[ValuePiece]
    plan: WritePlan | TritonWritePlan
    scales: Tensor
    shift: int
    frozen: bool
    undo_log: str = "fp32"
    rounding: Tensor | None = None


class ValueLog:
    """What a forward pass leaves behind for the caller: the fields of :class:`UndoLog` of the same names."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.old_values: list[Tensor] = []
        self.in_use: list[Tensor] = []


def _pair_steps(plan: WritePlan, scales: Tensor) -> Tensor:
    """Step size of every pair, alpha of DESIGN 2.5: scale of its piece / readers of its slot, [R * J]."""
    lengths = [after - before for before, after in zip(plan.bounds, plan.bounds[1:], strict=False)]
    scales = scales.repeat_interleave(torch.tensor(lengths, device=scales.device))
    return (scales / plan.counts)[plan.segments]


def _pair_weights(weights: Tensor, rows: int, pieces: list[ValuePiece], width: int) -> Tensor:
    """Write weights of stream rows [S] as weights of pairs [R * J]; zero for rows that are not written."""
    row_weights = weights.new_zeros(rows)
    for piece in pieces:
        written = piece.write_stop - piece.start
        row_weights[piece.start : piece.write_stop] = weights[piece.token : piece.token + written]
    return row_weights.repeat_interleave(width)


class _Inputs(NamedTuple):
    """What reads and writes are computed from, beside the table."""

    slot_weights: Tensor  # [R, J]
    write_weights: Tensor  # [S]
    targets: Tensor  # [S, D]
    steps: Tensor  # [R * J]


class _Steps(NamedTuple):
    """Reads that are returned [emitted rows, D]; rows of every piece before its write; errors of those that write."""

    reads: Tensor
    old_rows: list[Tensor]
    errors: list[Tensor]


def _written(pieces: list[ValuePiece]) -> list[ValuePiece]:
    return [piece for piece in pieces if piece.write_stop > piece.start]


def _read_and_write(
    table: Tensor, rows: Tensor, inputs: _Inputs, options: ValueOptions, keep: bool, log: ValueLog | None
) -> _Steps:
    """All pieces on ``table``, in which segment s of the plan is row ``rows[s]``; old rows only with ``keep``."""
    plan, pieces, slot_weights = options.plan, options.pieces, inputs.slot_weights
    assert isinstance(plan, WritePlan)
    num_rows, width = slot_weights.shape
    flat_weights = slot_weights.flatten()
    changes = inputs.steps * flat_weights * _pair_weights(inputs.write_weights, num_rows, pieces, width)
    changes = changes[plan.order]
    token_of_pair = plan.order // width
    row_starts = torch.arange(0, num_rows * width, width, device=table.device)
    emitted = sum(piece.stop - piece.emit_start for piece in pieces)
    reads = slot_weights.new_empty(emitted, table.shape[1])
    old_rows, errors = [], []
    position = 0
    for number, piece in enumerate(pieces):
        segments = slice(plan.bounds[number], plan.bounds[number + 1])
        pairs = slice(piece.start * width, piece.stop * width)
        old = gather_rows(table, rows[segments])
        wide = old.to(slot_weights.dtype)
        read = sum_rows(wide, plan.places[pairs], row_starts[: piece.stop - piece.start], flat_weights[pairs])
        length = piece.stop - piece.emit_start
        reads[position : position + length] = read[piece.emit_start - piece.start :]
        position += length
        written = piece.write_stop - piece.start
        if keep:
            old_rows.append(old)
        if not written:
            continue
        first_target = piece.token + options.shift
        error = read[:written] - inputs.targets[first_target : first_target + written]
        errors.append(error)
        if not options.frozen:
            # Rows that are read but not written have weight zero; the clamp only keeps their address legal.
            tokens = (token_of_pair[pairs] - piece.start).clamp_(max=written - 1)
            change = sum_rows(error, tokens, plan.starts[segments] - piece.start * width, changes[pairs])
            torch.sub(wide, change, out=change)
            if options.rounding is not None:
                change = round_rows(change, plan.slots[segments], options.rounding, len(errors) - 1)
            table.index_copy_(0, rows[segments], change)
            if log is not None:
                log.rows.append(rows[segments])
                log.old_values.append(old)
    return _Steps(reads, old_rows, errors)


class ValueChain(torch.autograd.Function):
    """values, slot weights [R, J], write weights [S], targets [S, D] -> reads [emitted rows, D], squared errors.

    ``table`` is written in place. ``values`` is the same memory before the call, for its gradient only. Squared errors
    [written rows] are sums over D of weight * error^2, without gradient. ``log`` receives what the writes overwrite.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        slot_weights: Tensor,
        write_weights: Tensor,
        targets: Tensor,
        table: Tensor,
        options: ValueOptions,
        log: ValueLog | None,
    ) -> tuple[Tensor, Tensor]:
        """Read and write piece by piece."""
        plan = options.plan
        assert isinstance(plan, WritePlan)
        keep = any(ctx.needs_input_grad)
        inputs = _Inputs(slot_weights, write_weights, targets, _pair_steps(plan, options.scales))
        recompute = keep and options.undo_log == "recompute"
        if recompute:
            touched = plan.slots.unique()
            first = gather_rows(table, touched)
            if log is not None and _written(options.pieces) and not options.frozen:
                # The first values undo all writes at once.
                log.rows.append(touched)
                log.old_values.append(first)
            log = None
        reads, old_rows, errors = _read_and_write(table, plan.slots, inputs, options, keep and not recompute, log)
        squares = [
            error.square().sum(-1).mul_(write_weights[piece.token : piece.token + error.shape[0]])
            for error, piece in zip(errors, _written(options.pieces), strict=True)
        ]
        ctx.options, ctx.num_slots, ctx.table_dtype = options, table.shape[0], values.dtype
        saved = [slot_weights, write_weights, inputs.steps]
        if recompute:
            # The state counts on before backward repeats the rounding.
            rounding = None if options.rounding is None else options.rounding.clone()
            ctx.options = options._replace(rounding=rounding)
            saved += [targets, first]
        elif keep:
            saved += [*(rows.bfloat16() for rows in old_rows)] if options.undo_log == "bf16" else old_rows
            saved += errors
        ctx.save_for_backward(*saved)
        squared_errors = torch.cat(squares) if squares else reads.new_zeros(0)
        ctx.mark_non_differentiable(squared_errors)
        ctx.set_materialize_grads(False)
        return reads, squared_errors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_reads: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Last piece first, with the gradient of the table held for touched rows only."""
        if grad_reads is None:
            return (None,) * 7
        with full_precision(grad_reads.device):
            return _Backward(ctx, grad_reads).run()


class _Backward:
    """One backward pass of :class:`ValueChain`.

    ``adjoint`` [U, D] is the gradient of the touched rows of the table after the piece at hand.
    """

    def __init__(self, ctx: Any, grad_reads: Tensor) -> None:
        options: ValueOptions = ctx.options
        assert isinstance(options.plan, WritePlan)
        slot_weights, write_weights, steps, *rows = ctx.saved_tensors
        self.options, self.plan, self.pieces = options, options.plan, options.pieces
        self.touched, self.compact = torch.unique(self.plan.slots, return_inverse=True)
        if options.undo_log == "recompute":
            targets, first = rows
            inputs = _Inputs(slot_weights, write_weights, targets, steps)
            # The same sums of the same rows as in forward, on a table that has no others: the same bits.
            _, self.old_rows, self.errors = _read_and_write(first.clone(), self.compact, inputs, options, True, None)
        else:
            self.old_rows, self.errors = rows[: len(self.pieces)], rows[len(self.pieces) :]
        self.width = slot_weights.shape[1]
        self.slot_weights, self.write_weights, self.steps = slot_weights.flatten(), write_weights, steps
        self.grad_reads, self.num_slots, self.table_dtype = grad_reads.contiguous(), ctx.num_slots, ctx.table_dtype
        self.wants_values = ctx.needs_input_grad[0]
        self.grad_slot_weights = torch.empty_like(self.slot_weights)
        self.grad_write_weights = torch.zeros_like(write_weights)
        stream_rows = write_weights.shape[0]
        self.grad_targets = grad_reads.new_zeros(stream_rows, grad_reads.shape[1])
        self.owners = torch.arange(slot_weights.shape[0], device=grad_reads.device).repeat_interleave(self.width)
        self.row_starts = torch.arange(0, self.slot_weights.numel(), self.width, device=grad_reads.device)
        self.sorted_weights = self.slot_weights[self.plan.order]
        self.sorted_owners = self.plan.order // self.width
        self.adjoint = grad_reads.new_zeros(self.touched.shape[0], grad_reads.shape[1])

    def run(self) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the inputs of :class:`ValueChain`."""
        end, error_number = self.grad_reads.shape[0], len(self.errors)
        for number in reversed(range(len(self.pieces))):
            piece = self.pieces[number]
            begin = end - (piece.stop - piece.emit_start)
            error = None
            if piece.write_stop > piece.start:
                error_number -= 1
                error = self.errors[error_number]
            self._piece(number, self.grad_reads[begin:end], error)
            end = begin
        grad_values = None
        if self.wants_values:
            grad_values = self.adjoint.new_zeros(self.num_slots, self.adjoint.shape[1])
            grad_values[self.touched] = self.adjoint
            grad_values = grad_values.to(self.table_dtype)
        grad_slot_weights = self.grad_slot_weights.view(-1, self.width)
        return grad_values, grad_slot_weights, self.grad_write_weights, self.grad_targets, None, None, None

    def _piece(self, number: int, grad_emitted: Tensor, error: Tensor | None) -> None:
        piece, plan, width = self.pieces[number], self.plan, self.width
        segments = slice(plan.bounds[number], plan.bounds[number + 1])
        pairs = slice(piece.start * width, piece.stop * width)
        rows = piece.stop - piece.start
        places, starts, owners = plan.places[pairs], self.row_starts[:rows], self.owners[: rows * width]
        grad_read = grad_emitted
        if piece.emit_start > piece.start:
            unreturned = grad_emitted.new_zeros(piece.emit_start - piece.start, grad_emitted.shape[1])
            grad_read = torch.cat([unreturned, grad_emitted])
        compact = self.compact[segments]
        is_last = number == len(self.pieces) - 1
        old = self.old_rows[number].to(grad_emitted.dtype)
        grad_weights = self.grad_slot_weights[pairs]
        if error is not None and not self.options.frozen and not is_last:
            written = error.shape[0]
            pushed = self.adjoint.index_select(0, compact)
            head = slice(piece.start * width, piece.write_stop * width)
            strength = self.steps[head] * self.slot_weights[head]
            pull = sum_rows(pushed, plan.places[head], starts[:written], strength)
            tokens = slice(piece.token, piece.token + written)
            weights = self.write_weights[tokens].unsqueeze(1)
            self.grad_write_weights[tokens] = -(pull * error).sum(-1)
            pull.mul_(weights)
            self.grad_targets[piece.token + self.options.shift : piece.token + self.options.shift + written] = pull
            grad_read = grad_read.clone()
            grad_read[:written] -= pull
            owners_of_head = owners[: written * width]
            dots = paired_dots(error * weights, pushed, plan.places[head], starts[:written], owners_of_head)
            torch.mul(dots, -self.steps[head], out=self.grad_slot_weights[head])
            self.grad_slot_weights[piece.write_stop * width : piece.stop * width] = 0
            grad_weights += paired_dots(grad_read, old, places, starts, owners)
        else:
            grad_weights.copy_(paired_dots(grad_read, old, places, starts, owners))
        sorted_rows = self.sorted_owners[pairs] - piece.start
        change = sum_rows(grad_read, sorted_rows, plan.starts[segments] - pairs.start, self.sorted_weights[pairs])
        self.adjoint.index_add_(0, compact, change)
