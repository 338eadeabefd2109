"""Reads and in-place writes of the values table in Triton: :class:`ValueChain` with one set of launches per piece.

Forward launches per piece: read, write, end of the write for slots with many pairs. Backward: rows, adjoint, its end.
Nothing is decided on the host, so the host never waits and a CUDA graph can hold the whole chain.

Shapes: R rows read by all pieces (time first, then sequence), J = heads * topk, P = R * J, D columns, S stream rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..triton_write_plan import TritonWritePlan, make_adjoint_plan
from ..value_chain import ValueLog, ValueOptions
from ..write_plan import ValuePiece
from .value_kernels import (
    TILE,
    adjoint_rows_kernel,
    backward_rows_kernel,
    finish_adjoint_kernel,
    finish_write_kernel,
    read_rows_kernel,
    write_rows_kernel,
)

_PAIRS_AT_ONCE = 8
"""Rows of table and log that a backward program holds in registers."""


class _Blocks(NamedTuple):
    """How D columns are cut."""

    size: int
    number: int
    warps: int


def column_blocks(num_columns: int, item_size: int = 4) -> _Blocks:
    """Blocks that waste the fewest columns, larger ones first; a thread loads 16 bytes of a row at a time.

    Args:
        num_columns: D.
        item_size: bytes of a number of the rows that are moved.
    """
    if num_columns <= 128:
        size = triton.next_power_of_2(num_columns)
    else:
        size = min((512, 256, 128), key=lambda size: (triton.cdiv(num_columns, size) * size, -size))
    return _Blocks(size, triton.cdiv(num_columns, size), max(1, size * item_size // 512))


def _sizes(num_columns: int, blocks: _Blocks) -> dict[str, Any]:
    """What every launch is given. Products are rounded before they are added, as in the interpreter."""
    return {"D": num_columns, "BLOCK": blocks.size, "num_warps": blocks.warps, "enable_fp_fusion": False}


def _bits(table: Tensor) -> Tensor:
    """What the kernels see of a table: a bfloat16 one as int16."""
    return table.view(torch.int16) if table.dtype == torch.bfloat16 else table


class _Position(NamedTuple):
    """Where a piece's rows lie in the tensors of all pieces; ``write`` counts the pieces that write."""

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


def _positions(pieces: list[ValuePiece]) -> list[_Position]:
    result, first_read, first_error, write = [], 0, 0, 0
    for number, piece in enumerate(pieces):
        result.append(_Position(number, piece, first_read, first_error, write))
        first_read += piece.stop - piece.emit_start
        first_error += piece.write_stop - piece.start
        write += piece.write_stop > piece.start
    return result


def read_rows(table: Tensor, slots: Tensor, slot_weights: Tensor) -> Tensor:
    """Reads of a call that writes nothing and keeps nothing for backward.

    Args:
        table: [N, D].
        slots: [R, J] int64.
        slot_weights: [R, J].

    Returns:
        [R, D].
    """
    rows, width = slots.shape
    blocks = column_blocks(table.shape[1], table.itemsize)
    reads = slot_weights.new_empty(rows, table.shape[1])
    with torch.cuda.device_of(table):
        read_rows_kernel[(rows, blocks.number)](
            _bits(table), slots, slot_weights.contiguous(), reads, reads, reads, reads, reads, 0, 0, 0, 0, 0, 0, 0,
            J=width, **_sizes(table.shape[1], blocks),
        )  # fmt: skip
    return reads


class TritonValueChain(torch.autograd.Function):
    """As :class:`ValueChain`, on a GPU (or in Triton's interpreter), given a :class:`TritonWritePlan`."""

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
        with torch.cuda.device_of(table):
            if recompute:
                first, log = _first_values(table, options, log), None
            forward = _Forward(slot_weights, write_weights, targets, table, options, keep and not recompute, log)
            forward.run()
        squared_errors = forward.squares.sum(1)
        ctx.options, ctx.num_slots, ctx.table_dtype = options, table.shape[0], values.dtype
        saved = [forward.slot_weights, forward.write_weights]
        if recompute:
            # The state counts on before backward repeats the rounding.
            rounding = None if options.rounding is None else options.rounding.clone()
            ctx.options = options._replace(rounding=rounding)
            saved += [forward.targets, first]
        elif keep:
            old_rows = forward.old_rows
            saved += [old_rows.bfloat16() if options.undo_log == "bf16" else old_rows, forward.errors]
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(squared_errors)
        ctx.set_materialize_grads(False)
        return forward.reads, squared_errors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_reads: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Last piece first, with the gradient of the table held for touched rows only."""
        if grad_reads is None:
            return (None,) * 7
        with torch.cuda.device_of(grad_reads):
            return _Backward(ctx, grad_reads.contiguous()).run()


def _first_values(table: Tensor, options: ValueOptions, log: ValueLog | None) -> Tensor:
    """The rows of all slots of a call before its first write, in the order of the adjoint; they undo all its writes."""
    assert isinstance(options.plan, TritonWritePlan)
    slots = make_adjoint_plan(options.plan, options.pieces, table.shape[0], False).slots
    in_use = slots < table.shape[0]
    # Rows that are not in use repeat the first one, which is.
    slots = torch.where(in_use, slots, slots[0])
    first = table.index_select(0, slots)
    if log is not None and not options.frozen and any(piece.write_stop > piece.start for piece in options.pieces):
        log.rows.append(slots)
        log.old_values.append(first)
        log.in_use.append(in_use)
    return first


class _Chain:
    """What both directions know: the plan, where every piece lies, and how columns are cut."""

    def __init__(self, options: ValueOptions, slot_weights: Tensor, num_columns: int, item_size: int) -> None:
        assert isinstance(options.plan, TritonWritePlan)
        self.options, self.plan, self.slot_weights = options, options.plan, slot_weights
        self.positions = _positions(options.pieces)
        self.width, self.num_columns = slot_weights.shape[1], num_columns
        self.blocks = column_blocks(num_columns, item_size)
        self.most_rows = max(position.rows for position in self.positions)
        # Partial sums of long segments, of one piece after the other.
        self.partials = slot_weights.new_empty(2 * triton.cdiv(self.most_rows * self.width, TILE), num_columns)
        self.sizes = _sizes(num_columns, self.blocks)

    def grid(self, programs: int) -> tuple[int, int]:
        """``programs`` times the blocks of columns."""
        return programs, self.blocks.number

    def pairs(self, position: _Position) -> tuple[int, int]:
        """The first pair of a piece, and how many it has."""
        return position.piece.start * self.width, position.rows * self.width


class _Forward(_Chain):
    """One forward pass: tensors that its launches fill."""

    def __init__(
        self,
        slot_weights: Tensor,
        write_weights: Tensor,
        targets: Tensor,
        table: Tensor,
        options: ValueOptions,
        keep: bool,
        log: ValueLog | None,
    ) -> None:
        super().__init__(options, slot_weights.contiguous(), table.shape[1], table.itemsize)
        self.write_weights, self.targets = write_weights.contiguous(), targets.contiguous()
        self.table, self.keep, self.log = table, keep, log
        last = self.positions[-1]
        returned, written = last.first_read + last.rows - last.first_kept, last.first_error + last.written
        self.reads = slot_weights.new_empty(returned, self.num_columns)
        self.errors = slot_weights.new_empty(written, self.num_columns)
        self.squares = slot_weights.new_empty(written, self.blocks.number)
        logged = slot_weights.numel() if keep or log is not None else 0
        self.old_rows = table.new_empty(logged, self.num_columns)
        self.names = self.plan.slots
        # Ignored but by a bfloat16 table.
        self.rounding = self.plan.counts if options.rounding is None else options.rounding

    def run(self) -> None:
        """All pieces."""
        for position in self.positions:
            self._read(position)
            update = bool(position.written) and not self.options.frozen
            keep_log = self.keep or (update and self.log is not None)
            if update or keep_log:
                self._write(position, update, keep_log)
            if update and self.log is not None:
                first, number = self.pairs(position)
                pairs = slice(first, first + number)
                self.log.rows.append(self.plan.slots[pairs])
                self.log.old_values.append(self.old_rows[pairs])
                self.log.in_use.append(self.plan.is_head[pairs])

    def _read(self, position: _Position) -> None:
        piece = position.piece
        read_rows_kernel[self.grid(position.rows)](
            _bits(self.table), self.plan.pair_slots, self.slot_weights, self.targets, self.write_weights,
            self.reads, self.errors, self.squares,
            piece.start, position.first_kept, position.first_read, position.written, piece.token, self.options.shift,
            position.first_error, J=self.width, **self.sizes,
        )  # fmt: skip

    def _write(self, position: _Position, update: bool, keep_log: bool) -> None:
        piece, plan, scales = position.piece, self.plan, self.options.scales
        first, number = self.pairs(position)
        write_rows_kernel[self.grid(number)](
            _bits(self.table), _bits(self.old_rows), self.partials, plan.slots, self.names, plan.heads, plan.lengths,
            plan.counts, plan.order, self.slot_weights, self.write_weights, self.errors, scales, self.rounding,
            piece.start, first, position.written, piece.token, position.first_error, position.number, position.write,
            J=self.width, TILE=TILE, KEEP_LOG=keep_log, UPDATE=update, **self.sizes,
        )  # fmt: skip
        if update and number > TILE:
            finish_write_kernel[self.grid(triton.cdiv(number, TILE))](
                _bits(self.table), self.partials, plan.slots, self.names, plan.heads, plan.lengths, plan.counts,
                scales, self.rounding, first, number, position.number, position.write, TILE=TILE, **self.sizes,
            )  # fmt: skip


class _Backward(_Chain):
    """One backward pass.

    ``adjoint`` [distinct slots, D] is the gradient of the touched rows of the table after the piece at hand; a row is
    in use once a piece has added to it.
    """

    def __init__(self, ctx: Any, grad_reads: Tensor) -> None:
        slot_weights, self.write_weights, *saved = ctx.saved_tensors
        super().__init__(ctx.options, slot_weights, grad_reads.shape[1], grad_reads.itemsize)
        self.grad_reads, self.num_slots, self.table_dtype = grad_reads, ctx.num_slots, ctx.table_dtype
        self.wants_values = ctx.needs_input_grad[0]
        self.adjoint_plan = make_adjoint_plan(self.plan, self.options.pieces, self.num_slots, self.wants_values)
        # Rows of every piece before its write, and errors.
        self.old_rows, self.errors = saved
        if self.options.undo_log == "recompute":
            self.old_rows, self.errors = self._repeat(*saved)
        columns, stream_rows = self.num_columns, self.write_weights.shape[0]
        rows, width = slot_weights.shape
        self.adjoint = grad_reads.new_empty(self.adjoint_plan.slots.shape[0], columns)
        self.grad_rows = grad_reads.new_empty(self.most_rows, columns)
        self.grad_slot_weights = grad_reads.new_zeros(rows, 2 * self.blocks.number, width)
        self.grad_write_weights = grad_reads.new_zeros(stream_rows, self.blocks.number)
        self.grad_targets = grad_reads.new_zeros(stream_rows, columns)

    def _repeat(self, targets: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Old rows and errors of forward, bit for bit, from the first values of all slots."""
        options = self.options._replace(plan=self.adjoint_plan.on_rows(self.plan))
        forward = _Forward(self.slot_weights, self.write_weights, targets, first.clone(), options, True, None)
        forward.names = self.plan.slots
        forward.run()
        return forward.old_rows, forward.errors

    def run(self) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the inputs of :class:`TritonValueChain`."""
        for position in reversed(self.positions):
            self._rows(position)
            # Before the first piece only the table itself can ask, and a frozen one asks for nothing.
            if self.wants_values or (position.number and not self.options.frozen):
                self._adjoint(position)
        grad_values = None
        if self.wants_values:
            # Rows that are not in use go to a row past the last.
            grad_values = self.adjoint.new_zeros(self.num_slots + 1, self.num_columns)
            grad_values = grad_values.index_copy_(0, self.adjoint_plan.slots, self.adjoint)[:-1].to(self.table_dtype)
        grad_slot_weights, grad_write_weights = self.grad_slot_weights.sum(1), self.grad_write_weights.sum(1)
        return grad_values, grad_slot_weights, grad_write_weights, self.grad_targets, None, None, None

    def _rows(self, position: _Position) -> None:
        piece, plan = position.piece, self.plan
        is_last = position.number == len(self.positions) - 1
        pull = bool(position.written) and not self.options.frozen and not is_last
        backward_rows_kernel[self.grid(position.rows)](
            self.adjoint, _bits(self.old_rows), self.adjoint_plan.sources, plan.places, plan.counts,
            self.slot_weights, self.write_weights, self.errors, self.options.scales,
            self.grad_reads, self.grad_rows, self.grad_slot_weights, self.grad_write_weights, self.grad_targets,
            piece.start, position.first_kept, position.first_read, position.written, piece.token, self.options.shift,
            position.first_error, position.number,
            J=self.width, PAIRS=min(_PAIRS_AT_ONCE, triton.next_power_of_2(self.width)), PULL=pull, **self.sizes,
        )  # fmt: skip

    def _adjoint(self, position: _Position) -> None:
        plan, adjoint_plan = self.plan, self.adjoint_plan
        first, number = self.pairs(position)
        adjoint_rows_kernel[self.grid(number)](
            self.adjoint, self.partials, adjoint_plan.sources, adjoint_plan.sinks, plan.heads, plan.lengths, plan.order,
            self.slot_weights, self.grad_rows, position.piece.start, first,
            J=self.width, TILE=TILE, **self.sizes,
        )  # fmt: skip
        if number > TILE:
            finish_adjoint_kernel[self.grid(triton.cdiv(number, TILE))](
                self.adjoint, self.partials, adjoint_plan.sources, adjoint_plan.sinks, plan.heads, plan.lengths,
                plan.order, first, number, TILE=TILE, **self.sizes,
            )  # fmt: skip
