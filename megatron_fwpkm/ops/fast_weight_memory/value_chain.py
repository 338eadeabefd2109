"""Reads and in-place writes of the values table, with the closed-form backward of DESIGN section 2.5.

The rows a piece reads are the rows it may write. They are copied out before the write (the undo log), so backward
needs neither the table nor a rewind of it: the table may have moved on, and does so under pipeline schedules.

This is the driver: the order of the pieces, what is kept, repeated and given to the caller. What one piece computes is
done by its *steps*, which exist in torch (`sparse/value_steps.py`) and in Triton (`triton/value_steps.py`).

Shapes: T rows read by all pieces (time first, then sequence), J = heads * topk, P = T * J pairs, D = value_dim,
S stream rows, E rows written by all pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..named_ranges import named_range
from ..precision import full_precision
from ..undo_log import UndoLog
from .write_plan import ValuePiece, WritePlan, make_adjoint_plan

if TYPE_CHECKING:
    from .sparse.value_steps import SparseBackward, SparseForward
    from .triton.value_steps import TritonBackward, TritonForward


class ValueOptions(NamedTuple):
    """What the chain needs to know besides its tensors.

    Attributes:
        steps: torch or Triton.
        pieces: the rows of every piece.
        plan: the sorted pairs.
        scales: [pieces], step size of every write before the division by a slot's readers.
        shift: stream rows from a token to its target: lookahead * B.
        frozen: nothing is written; the errors are still measured.
        undo_log: `fp32`, `bf16` or `recompute`, see `MemoryOptions`.
        rounding: what the rounding of a bfloat16 table depends on (`rounding.py`), None for other tables.
    """

    steps: ValueSteps
    pieces: list[ValuePiece]
    plan: WritePlan
    scales: Tensor
    shift: int
    frozen: bool
    undo_log: str = "fp32"
    rounding: Tensor | None = None


class ValueInputs(NamedTuple):
    """What the steps of a pass are made of, beside the table.

    Attributes:
        slot_weights: [T, J].
        write_weights: [S].
        targets: [S, D]; empty in backward, which does not need them.
        options: of the call.
        layout: what `ValueSteps.lay_out` has made of the plan.
    """

    slot_weights: Tensor
    write_weights: Tensor
    targets: Tensor
    options: ValueOptions
    layout: Any


class ValueSteps(NamedTuple):
    """What one implementation adds to the driver; `sparse/value_steps.py` says what each step is for.

    Attributes:
        plan_writes: as `make_write_plan`.
        plan_adjoint: (plan, rows of the table, whether its gradient is asked for) -> as `make_adjoint_plan`, though
            rows may be numbered otherwise.
        lay_out: (plan, pieces, scales) -> what the steps need of the plan in a form of their own.
        forward: begins a pass over a table, (inputs, table, slots, keep): `slots` [P] names the slot at every position
            of the plan, whose own slots are rows of the table; with `keep` old rows are asked for.
        backward: begins a backward pass, (inputs, what `plan_adjoint` or `make_adjoint_plan` gave, old rows and errors
            as forward has left them, gradient of the reads, whether the gradient of the table itself is asked for).
        read_rows: (table [n * n, D], slots [T, J], slot_weights [T, J]) -> reads [T, D], without gradient.
        counts_rows: buffers have as many rows as are used, which the host asks for; otherwise as many as there may be.
    """

    plan_writes: Callable[[Tensor, list[ValuePiece], int], WritePlan]
    plan_adjoint: Callable[[WritePlan, int, bool], Any]
    lay_out: Callable[[WritePlan, list[ValuePiece], Tensor], Any]
    forward: Callable[[ValueInputs, Tensor, Tensor, bool], SparseForward | TritonForward]
    backward: Callable[[ValueInputs, Any, list[Tensor], list[Tensor], Tensor, bool], SparseBackward | TritonBackward]
    read_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    counts_rows: bool


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
        log: UndoLog | None,
    ) -> tuple[Tensor, Tensor]:
        """Read and write piece by piece."""
        keep = any(ctx.needs_input_grad)
        recompute = keep and options.undo_log == "recompute"
        layout = options.steps.lay_out(options.plan, options.pieces, options.scales)
        slot_weights, write_weights, targets = (x.contiguous() for x in (slot_weights, write_weights, targets))
        inputs = ValueInputs(slot_weights, write_weights, targets, options, layout)
        if recompute:
            first, log = _first_values(table, options, log), None
        steps = _run(inputs, table, options.plan.slots, keep and not recompute, log)
        squared_errors = steps.squared_errors()
        saved = [slot_weights, write_weights]
        if recompute:
            if options.rounding is not None:
                # The state counts on before backward repeats the rounding.
                options = options._replace(rounding=options.rounding.clone())
            saved += [targets, first]
        elif keep:
            rounded = options.undo_log == "bf16"
            saved += [*(rows.bfloat16() for rows in steps.old_rows)] if rounded else steps.old_rows
            saved += steps.errors
        # Tensors that are not saved so would escape whoever moves saved tensors to the host.
        (plan, of_plan), (layout, of_layout) = _taken_apart(options.plan), _taken_apart(layout)
        nothing = slot_weights.new_empty(0)
        ctx.inputs = ValueInputs(nothing, nothing, nothing, options._replace(plan=plan), layout)
        ctx.num_old_rows, ctx.num_slots, ctx.table_dtype = len(steps.old_rows), table.shape[0], values.dtype
        ctx.save_for_backward(*of_plan, *of_layout, *saved)
        ctx.mark_non_differentiable(squared_errors)
        ctx.set_materialize_grads(False)
        return steps.reads, squared_errors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_reads: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Last piece first, with the gradient of the table held for touched rows only."""
        if grad_reads is None:
            return (None,) * 7
        with full_precision(grad_reads.device), named_range("memory backward"):
            return *_gradients(ctx, grad_reads.contiguous()), None, None, None


def _taken_apart(record: Any) -> tuple[Any, list[Tensor]]:
    """A named tuple with None in the place of its tensors, and these; None has none."""
    tensors = {} if record is None else {key: x for key, x in record._asdict().items() if isinstance(x, Tensor)}
    return record if record is None else record._replace(**dict.fromkeys(tensors)), list(tensors.values())


def _put_together(record: Any, tensors: Iterator[Tensor]) -> Any:
    """The named tuple with its tensors, which are the next ones."""
    if record is None:
        return None
    return record._replace(**{name: next(tensors) for name, field in record._asdict().items() if field is None})


def _run(
    inputs: ValueInputs, table: Tensor, slots: Tensor, keep: bool, log: UndoLog | None
) -> SparseForward | TritonForward:
    """All pieces on `table`, whose rows the plan of `inputs` names; rows before the writes are kept with `keep`."""
    options = inputs.options
    steps = options.steps.forward(inputs, table, slots, keep or log is not None)
    for piece in options.pieces:
        update = bool(piece.written) and not options.frozen
        steps.run(piece, update, keep or (update and log is not None))
        if update and log is not None:
            log.add(*steps.overwritten(piece))
    return steps


def _first_values(table: Tensor, options: ValueOptions, log: UndoLog | None) -> Tensor:
    """The rows of all slots of a call before its first write, in the order of the adjoint; they undo all its writes."""
    slots = make_adjoint_plan(options.plan, table.shape[0], options.steps.counts_rows).slots
    in_use = slots < table.shape[0]
    # Rows that are not in use repeat the first one, which is.
    sources = torch.where(in_use, torch.arange(slots.shape[0], device=slots.device), 0)
    slots = slots[sources]
    # With `out` given, index_select is five times faster on CPU than without.
    first = torch.index_select(table, 0, slots, out=table.new_empty(slots.shape[0], table.shape[1]))
    if log is not None and not options.frozen and any(piece.written for piece in options.pieces):
        log.add(slots, first, None if options.steps.counts_rows else sources)
    return first


def _gradients(ctx: Any, grad_reads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients of values, slot weights, write weights and targets."""
    tensors = iter(ctx.saved_tensors)
    options = ctx.inputs.options._replace(plan=_put_together(ctx.inputs.options.plan, tensors))
    layout = _put_together(ctx.inputs.layout, tensors)
    slot_weights, write_weights, *saved = tensors
    wants_values: bool = ctx.needs_input_grad[0]
    inputs = ValueInputs(slot_weights, write_weights, ctx.inputs.targets, options, layout)
    if options.undo_log == "recompute":
        targets, first = saved
        adjoint_plan: Any = make_adjoint_plan(options.plan, ctx.num_slots, options.steps.counts_rows)
        # The same sums of the same rows as in forward, on a table that has no others: the same bits.
        on_rows = options._replace(plan=adjoint_plan.on_rows(options.plan))
        forward = _run(inputs._replace(targets=targets, options=on_rows), first.clone(), options.plan.slots, True, None)
        old_rows, errors = forward.old_rows, forward.errors
    else:
        adjoint_plan = options.steps.plan_adjoint(options.plan, ctx.num_slots, wants_values)
        old_rows, errors = saved[: ctx.num_old_rows], saved[ctx.num_old_rows :]
    steps = options.steps.backward(inputs, adjoint_plan, old_rows, errors, grad_reads, wants_values)
    for piece in reversed(options.pieces):
        written = bool(piece.written) and not options.frozen and piece is not options.pieces[-1]
        # Before the first piece only the table itself can ask, and a frozen one asks for nothing.
        steps.run(piece, written, wants_values or (piece.number > 0 and not options.frozen))
    grad_values = None
    if wants_values:
        # Rows that are not in use go to a row past the last.
        grad_values = steps.adjoint.new_zeros(ctx.num_slots + 1, steps.adjoint.shape[1])
        grad_values = grad_values.index_copy_(0, adjoint_plan.slots, steps.adjoint)[:-1].to(ctx.table_dtype)
    return grad_values, *steps.gradients()
