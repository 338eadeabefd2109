"""Reads and in-place writes of the values table, with the closed-form backward of DESIGN section 2.5.

The rows a piece reads are the rows it may write. They are copied out before the write (the undo log), so backward
needs neither the table nor a rewind of it: the table may have moved on, and does so under pipeline schedules.

This is the driver: the order of the pieces, what is kept, repeated and given to the caller. What one piece computes is
done by its *steps*, which exist in torch (`sparse/value_steps.py`) and in Triton (`triton/value_steps.py`).

Shapes: T rows read by all pieces (time first, then sequence), J = heads * topk, P = T * J pairs, D = value_dim,
S stream rows, E rows written by all pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .precision import full_precision
from .write_plan import AdjointPlan, ValuePiece, WritePlan, make_adjoint_plan


class Position(NamedTuple):
    """Where a piece's rows lie in the tensors of all pieces; `write` counts the pieces that write."""

    number: int
    piece: ValuePiece
    first_read: int
    first_error: int
    write: int

    @property
    def rows(self) -> int:
        """Rows read."""
        return self.piece.stop - self.piece.start

    @property
    def written(self) -> int:
        """Rows written."""
        return self.piece.write_stop - self.piece.start

    @property
    def first_kept(self) -> int:
        """The first row that is returned."""
        return self.piece.emit_start - self.piece.start


class ValueInputs(NamedTuple):
    """What reads and writes are computed from, beside the table.

    Attributes:
        slot_weights: [T, J].
        write_weights: [S].
        targets: [S, D]; empty in backward, which does not need them.
        scales: [pieces], step size of every write before the division by a slot's readers.
        plan: the sorted pairs.
        layout: what the steps have made of the plan.
        shift: stream rows from a token to its target: lookahead * B.
        rounding: what the rounding of a bfloat16 table depends on (`rounding.py`), None for other tables.
    """

    slot_weights: Tensor
    write_weights: Tensor
    targets: Tensor
    scales: Tensor
    plan: WritePlan
    layout: Any
    shift: int
    rounding: Tensor | None


class ForwardSteps(Protocol):
    """One forward pass over a table, piece by piece.

    Made of (inputs, table, positions, slots, keep): `slots` [P] names the slot at every position of the plan, whose
    own slots are rows of the table; with `keep` old rows are asked for.

    Attributes:
        reads: [returned rows, D].
        old_rows: rows of every piece before its write; what backward of the same steps takes.
        errors: [E, D] in parts, likewise.
    """

    reads: Tensor
    old_rows: list[Tensor]
    errors: list[Tensor]

    def run(self, position: Position, update: bool, keep_rows: bool) -> None:
        """Read a piece; write it with `update`, and keep its rows as they were before with `keep_rows`."""
        ...

    def overwritten(self, position: Position) -> tuple[Tensor, Tensor, Tensor | None]:
        """Slots, old rows and entries in use of the piece that was just written: an entry of the undo log."""
        ...

    def squared_errors(self) -> Tensor:
        """[E]: sums over D of write weight * error^2."""
        ...


class BackwardSteps(Protocol):
    """One backward pass, last piece first.

    Made of (inputs, adjoint plan, positions, old rows, errors, gradient of the reads [returned rows, D], and whether
    the gradient of the table itself is asked for).

    Attributes:
        adjoint: [rows of the adjoint plan, D], gradient of the touched rows of the table after the piece at hand.
    """

    adjoint: Tensor

    def run(self, position: Position, written: bool, wanted: bool) -> None:
        """Gradients of a piece's rows; `written`: later pieces read its writes; `wanted`: earlier ones need its own."""
        ...

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of slot weights [T, J], write weights [S] and targets [S, D]."""
        ...


@dataclass(frozen=True)
class ValueSteps:
    """What one implementation adds to the driver.

    Attributes:
        lay_out: (plan, pieces, scales) -> what the steps need of the plan in a form of their own.
        forward: makes `ForwardSteps`.
        backward: makes `BackwardSteps`.
        read_rows: (table [n * n, D], slots [T, J], slot_weights [T, J]) -> reads [T, D], without gradient.
        counts_rows: buffers have as many rows as are used, which the host asks for; otherwise as many as there may be.
    """

    lay_out: Callable[[WritePlan, list[ValuePiece], Tensor], Any]
    forward: Callable[[ValueInputs, Tensor, list[Position], Tensor, bool], ForwardSteps]
    backward: Callable[..., BackwardSteps]
    read_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    counts_rows: bool


class ValueOptions(NamedTuple):
    """What the chain needs to know besides its tensors; fields of the same names are those of `ValueInputs`.

    Attributes:
        steps: torch or Triton.
        pieces: the rows of every piece.
        frozen: nothing is written; the errors are still measured.
        undo_log: `fp32`, `bf16` or `recompute`, see `fast_weight_memory`.
    """

    steps: ValueSteps
    pieces: list[ValuePiece]
    plan: WritePlan
    scales: Tensor
    shift: int
    frozen: bool
    undo_log: str = "fp32"
    rounding: Tensor | None = None


class ValueLog:
    """What a forward pass leaves behind for the caller: the fields of `UndoLog` of the same names."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.old_values: list[Tensor] = []
        self.in_use: list[Tensor] = []

    def add(self, rows: Tensor, old_values: Tensor, in_use: Tensor | None) -> None:
        """Add one write; `in_use` is None when all its entries are."""
        self.rows.append(rows)
        self.old_values.append(old_values)
        if in_use is not None:
            self.in_use.append(in_use)


def _positions(pieces: list[ValuePiece]) -> list[Position]:
    result, first_read, first_error, write = [], 0, 0, 0
    for number, piece in enumerate(pieces):
        result.append(Position(number, piece, first_read, first_error, write))
        first_read += piece.stop - piece.emit_start
        first_error += piece.write_stop - piece.start
        write += piece.write_stop > piece.start
    return result


class ValueChain(torch.autograd.Function):
    """values, slot weights [T, J], write weights [S], targets [S, D] -> reads [emitted rows, D], squared errors.

    `table` is written in place. `values` is the same memory before the call, for its gradient only. Squared errors
    [written rows] are sums over D of weight * error^2, without gradient. `log` receives what the writes overwrite.
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
        keep = any(ctx.needs_input_grad)
        recompute = keep and options.undo_log == "recompute"
        layout = options.steps.lay_out(options.plan, options.pieces, options.scales)
        constants = options.scales, options.plan, layout, options.shift, options.rounding
        slot_weights, write_weights, targets = (x.contiguous() for x in (slot_weights, write_weights, targets))
        inputs = ValueInputs(slot_weights, write_weights, targets, *constants)
        with torch.cuda.device_of(table):
            if recompute:
                first, log = _first_values(table, options, log), None
            steps = _run(inputs, table, options, options.plan.slots, keep and not recompute, log)
            squared_errors = steps.squared_errors()
        saved = [slot_weights, write_weights]
        if recompute:
            # The state counts on before backward repeats the rounding.
            rounding = None if options.rounding is None else options.rounding.clone()
            inputs = inputs._replace(rounding=rounding)
            saved += [targets, first]
        elif keep:
            rounded = options.undo_log == "bf16"
            saved += [*(rows.bfloat16() for rows in steps.old_rows)] if rounded else steps.old_rows
            saved += steps.errors
        nothing = slot_weights.new_empty(0)
        ctx.inputs = inputs._replace(slot_weights=nothing, write_weights=nothing, targets=nothing)
        ctx.options, ctx.num_old_rows = options, len(steps.old_rows)
        ctx.num_slots, ctx.table_dtype = table.shape[0], values.dtype
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(squared_errors)
        ctx.set_materialize_grads(False)
        return steps.reads, squared_errors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_reads: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Last piece first, with the gradient of the table held for touched rows only."""
        if grad_reads is None:
            return (None,) * 7
        with torch.cuda.device_of(grad_reads), full_precision(grad_reads.device):
            return *_gradients(ctx, grad_reads.contiguous()), None, None, None


def _run(
    inputs: ValueInputs, table: Tensor, options: ValueOptions, slots: Tensor, keep: bool, log: ValueLog | None
) -> ForwardSteps:
    """All pieces on `table`, whose rows the plan of `inputs` names; rows before the writes are kept with `keep`."""
    positions = _positions(options.pieces)
    steps = options.steps.forward(inputs, table, positions, slots, keep or log is not None)
    for position in positions:
        update = bool(position.written) and not options.frozen
        steps.run(position, update, keep or (update and log is not None))
        if update and log is not None:
            log.add(*steps.overwritten(position))
    return steps


def _first_values(table: Tensor, options: ValueOptions, log: ValueLog | None) -> Tensor:
    """The rows of all slots of a call before its first write, in the order of the adjoint; they undo all its writes."""
    slots = _adjoint_plan(options, table.shape[0]).slots
    in_use = slots < table.shape[0]
    # Rows that are not in use repeat the first one, which is.
    slots = torch.where(in_use, slots, slots[0])
    # With `out` given, index_select is five times faster on CPU than without.
    first = torch.index_select(table, 0, slots, out=table.new_empty(slots.shape[0], table.shape[1]))
    if log is not None and not options.frozen and any(piece.write_stop > piece.start for piece in options.pieces):
        log.add(slots, first, None if options.steps.counts_rows else in_use)
    return first


def _adjoint_plan(options: ValueOptions, num_slots: int) -> AdjointPlan:
    """The distinct slots of a call; only those that are in use, if the steps count them."""
    adjoint_plan = make_adjoint_plan(options.plan, num_slots)
    if options.steps.counts_rows:
        slots = adjoint_plan.slots
        return adjoint_plan._replace(slots=slots[: int((slots < num_slots).sum())])
    return adjoint_plan


def _gradients(ctx: Any, grad_reads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients of values, slot weights, write weights and targets."""
    slot_weights, write_weights, *saved = ctx.saved_tensors
    options: ValueOptions = ctx.options
    wants_values: bool = ctx.needs_input_grad[0]
    inputs: ValueInputs = ctx.inputs._replace(slot_weights=slot_weights, write_weights=write_weights)
    adjoint_plan = _adjoint_plan(options, ctx.num_slots)
    if options.undo_log == "recompute":
        targets, first = saved
        # The same sums of the same rows as in forward, on a table that has no others: the same bits.
        repeated = inputs._replace(targets=targets, plan=adjoint_plan.on_rows(options.plan))
        forward = _run(repeated, first.clone(), options, options.plan.slots, True, None)
        old_rows, errors = forward.old_rows, forward.errors
    else:
        old_rows, errors = saved[: ctx.num_old_rows], saved[ctx.num_old_rows :]
    positions = _positions(options.pieces)
    steps = options.steps.backward(inputs, adjoint_plan, positions, old_rows, errors, grad_reads, wants_values)
    for position in reversed(positions):
        is_last = position.number == len(positions) - 1
        written = bool(position.written) and not options.frozen and not is_last
        # Before the first piece only the table itself can ask, and a frozen one asks for nothing.
        steps.run(position, written, wants_values or (position.number > 0 and not options.frozen))
    grad_values = None
    if wants_values:
        # Rows that are not in use go to a row past the last.
        grad_values = steps.adjoint.new_zeros(ctx.num_slots + 1, steps.adjoint.shape[1])
        grad_values = grad_values.index_copy_(0, adjoint_plan.slots, steps.adjoint)[:-1].to(ctx.table_dtype)
    return grad_values, *steps.gradients()
