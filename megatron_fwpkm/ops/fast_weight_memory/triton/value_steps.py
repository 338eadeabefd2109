"""The steps of the values' chain in Triton: one set of launches per piece.

Forward launches per piece: read, write, end of the write for slots with many pairs. Backward: rows, adjoint, its end.
Nothing is decided on the host, so the host never waits and a CUDA graph can hold the whole chain.

Shapes: T rows read by all pieces, J = heads * topk, P = T * J pairs, D columns, S stream rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ...kernel_forms import KernelForm
from ..value_chain import Position, ValueInputs, ValueSteps
from ..write_plan import AdjointPlan, ValuePiece, WritePlan
from .value_forms import ValueForms
from .value_kernels import TILE


def _bits(table: Tensor) -> Tensor:
    """What the kernels see of a table: a bfloat16 one as int16."""
    return table.view(torch.int16) if table.dtype == torch.bfloat16 else table


class _Pass:
    """What both directions know: tensors and numbers by the names of the kernels' parameters, and all forms."""

    def __init__(self, inputs: ValueInputs, positions: list[Position], num_columns: int, item_size: int) -> None:
        self.inputs, self.plan, self.slot_weights = inputs, inputs.plan, inputs.slot_weights
        self.width, self.num_columns = inputs.slot_weights.shape[1], num_columns
        self.forms = ValueForms(num_columns, self.width, item_size)
        self.most_rows = max(position.rows for position in positions)
        # Partial sums of long segments, of one piece after the other.
        tiles = 2 * triton.cdiv(self.most_rows * self.width, TILE)
        self.tensors: dict[str, Any] = {
            "PARTIALS": self.slot_weights.new_empty(tiles, num_columns),
            "PAIR_SLOTS": self.plan.pair_slots,
            "SLOTS": self.plan.slots,
            "HEADS": self.plan.heads,
            "LENGTHS": self.plan.lengths,
            "COUNTS": self.plan.counts,
            "PLACES": self.plan.places,
            "ORDER": self.plan.order,
            "WEIGHTS": self.slot_weights,
            "WRITE_WEIGHTS": inputs.write_weights,
            "SCALES": inputs.scales,
            "shift": inputs.shift,
        }

    def numbers(self, position: Position) -> dict[str, int]:
        """Where a piece's rows and pairs begin, by the names of the kernels' parameters."""
        return {
            "piece": position.number,
            "write": position.write,
            "first_row": position.piece.start,
            "first_pair": position.piece.start * self.width,
            "pairs": position.rows * self.width,
            "first_kept": position.first_kept,
            "first_read": position.first_read,
            "first_token": position.piece.token,
            "first_error": position.first_error,
            "written": position.written,
        }

    def launch(self, form: KernelForm, position: Position, programs: int) -> None:
        """Launch for a piece, with `programs` times the blocks of columns."""
        form.launch((programs, self.forms.blocks.number), self.tensors, self.numbers(position))


class _Forward(_Pass):
    """One forward pass; see `ForwardSteps`."""

    def __init__(
        self, inputs: ValueInputs, table: Tensor, positions: list[Position], slots: Tensor, keep: bool
    ) -> None:
        super().__init__(inputs, positions, table.shape[1], table.itemsize)
        last, new = positions[-1], self.slot_weights.new_empty
        written = last.first_error + last.written
        self.reads = new(last.first_read + last.rows - last.first_kept, self.num_columns)
        self.squares = new(written, self.forms.blocks.number)
        self.old_rows = [table.new_empty(self.slot_weights.numel() if keep else 0, self.num_columns)]
        self.errors = [new(written, self.num_columns)]
        self.slots = slots
        self.tensors |= {
            "TABLE": _bits(table),
            "LOG": _bits(self.old_rows[0]),
            "NAMES": slots,
            "TARGETS": inputs.targets,
            "READS": self.reads,
            "ERRORS": self.errors[0],
            "SQUARES": self.squares,
            # Ignored but by a bfloat16 table.
            "ROUNDING": self.plan.counts if inputs.rounding is None else inputs.rounding,
        }

    def run(self, position: Position, update: bool, keep_rows: bool) -> None:
        """Read a piece; write it, and keep what its rows were."""
        self.launch(self.forms.read(), position, position.rows)
        pairs = position.rows * self.width
        if update or keep_rows:
            self.launch(self.forms.write(update=update, keep_log=keep_rows), position, pairs)
        if update and pairs > TILE:
            self.launch(self.forms.finish_write(), position, triton.cdiv(pairs, TILE))

    def overwritten(self, position: Position) -> tuple[Tensor, Tensor, Tensor]:
        """Slots and rows at all positions of the piece; those of first pairs are in use."""
        pairs = slice(position.piece.start * self.width, position.piece.stop * self.width)
        return self.slots[pairs], self.old_rows[0][pairs], self.plan.is_head[pairs]

    def squared_errors(self) -> Tensor:
        """Squared length of the error of every written token, [E]."""
        return self.squares.sum(1)


class _Backward(_Pass):
    """One backward pass; see `BackwardSteps`. A row of the adjoint is in use once a piece has added to it."""

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
        columns = grad_reads.shape[1]
        super().__init__(inputs, positions, columns, grad_reads.itemsize)
        blocks, stream_rows = self.forms.blocks.number, inputs.write_weights.shape[0]
        rows, width = self.slot_weights.shape
        self.adjoint = grad_reads.new_empty(adjoint_plan.slots.shape[0], columns)
        self.grad_slot_weights = grad_reads.new_zeros(rows, 2 * blocks, width)
        self.grad_write_weights = grad_reads.new_zeros(stream_rows, blocks)
        self.grad_targets = grad_reads.new_zeros(stream_rows, columns)
        sources, sinks = adjoint_plan.links(self.plan, [position.piece for position in positions], wants_table)
        self.tensors |= {
            "ADJOINT": self.adjoint,
            "LOG": _bits(old_rows[0]),
            "SOURCES": sources,
            "SINKS": sinks,
            "ERRORS": errors[0],
            "GRAD_READS": grad_reads,
            "GRAD_ROWS": grad_reads.new_empty(self.most_rows, columns),
            "GRAD_WEIGHTS": self.grad_slot_weights,
            "GRAD_WRITE_WEIGHTS": self.grad_write_weights,
            "GRAD_TARGETS": self.grad_targets,
        }

    def run(self, position: Position, written: bool, wanted: bool) -> None:
        """Gradients of one piece's rows, and of the table before it."""
        self.launch(self.forms.backward(written=written), position, position.rows)
        pairs = position.rows * self.width
        if wanted:
            self.launch(self.forms.adjoint(), position, pairs)
        if wanted and pairs > TILE:
            self.launch(self.forms.finish_adjoint(), position, triton.cdiv(pairs, TILE))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of slot weights, write weights and targets."""
        return self.grad_slot_weights.sum(1), self.grad_write_weights.sum(1), self.grad_targets


def read_rows(table: Tensor, slots: Tensor, slot_weights: Tensor) -> Tensor:
    """Reads of a call that writes nothing and keeps nothing for backward.

    Args:
        table: [n * n, D].
        slots: [T, J] int64.
        slot_weights: [T, J].

    Returns:
        [T, D].
    """
    rows, width = slots.shape
    forms = ValueForms(table.shape[1], width, table.itemsize)
    reads = slot_weights.new_empty(rows, table.shape[1])
    form = forms.read()
    unused = {name: reads if name.isupper() else 0 for name in form.parameters}
    tensors = {"TABLE": _bits(table), "PAIR_SLOTS": slots, "WEIGHTS": slot_weights.contiguous(), "READS": reads}
    with torch.cuda.device_of(table):
        form.launch((rows, forms.blocks.number), unused, tensors)
    return reads


def _nothing(plan: WritePlan, pieces: list[ValuePiece], scales: Tensor) -> None:
    """The kernels take the plan as it is."""


VALUE_STEPS = ValueSteps(_nothing, _Forward, _Backward, read_rows, counts_rows=False)
"""What `implementation="triton"` adds to the driver of the values."""
