"""The steps of the values' chain in Triton: one set of launches per piece.

Forward launches per piece: read, write. Backward: rows, adjoint.
Nothing is decided on the host, so the host never waits and a CUDA graph can hold the whole chain.

Shapes: T rows read by all pieces, J = heads * topk, P = T * J pairs, D columns, S stream rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernel_forms import KernelForm, aligned, cdiv, next_power_of_2
from ...named_ranges import named_range
from ..value_chain import ValueInputs, ValueSteps
from ..write_plan import AdjointPlan, ValuePiece, WritePlan
from . import value_kernels as kernels
from .plans import KernelAdjointPlan, plan_adjoint, plan_writes
from .value_kernels import TILE

_PAIRS_AT_ONCE = 8
"""Rows of table and log that a backward program holds in registers; half as many if it has more in several passes."""


class ColumnBlocks(NamedTuple):
    """How D columns are cut."""

    size: int
    number: int
    warps: int


def column_blocks(num_columns: int, item_size: int = 4) -> ColumnBlocks:
    """Blocks that waste the fewest columns, larger ones first; a thread loads 16 bytes of a row at a time.

    Args:
        num_columns: D.
        item_size: bytes of a number of the rows that are moved.
    """
    if num_columns <= 128:
        size = next_power_of_2(num_columns)
    else:
        size = min((512, 256, 128), key=lambda size: (cdiv(num_columns, size) * size, -size))
    return ColumnBlocks(size, cdiv(num_columns, size), max(1, size * item_size // 512))


class ValueForms:
    """The forms in which kernels are launched for one shape.

    Args:
        num_columns: D.
        width: J, pairs of a row.
        item_size: bytes of a number of the rows that are moved: of the table in forward, of gradients in backward.
    """

    def __init__(self, num_columns: int, width: int, item_size: int = 4) -> None:
        self.blocks = column_blocks(num_columns, item_size)
        pairs = _PAIRS_AT_ONCE // 2 if width > _PAIRS_AT_ONCE else next_power_of_2(width)
        self._forms: dict[tuple[Any, ...], KernelForm] = {}
        self._shape = {"D": num_columns, "J": width, "BLOCK": self.blocks.size, "TILE": TILE, "PAIRS": pairs}

    def form(self, kernel: Any, **flags: bool) -> KernelForm:
        """How a kernel is launched."""
        key = id(kernel), *flags.items()
        if key not in self._forms:
            self._forms[key] = KernelForm.of(kernel, self._shape | flags, self.blocks.warps)
        return self._forms[key]


@cache
def value_forms(num_columns: int, width: int, item_size: int) -> ValueForms:
    """The forms for a shape, which remember what was compiled."""
    return ValueForms(num_columns, width, item_size)


def _bits(table: Tensor) -> Tensor:
    """What the kernels see of a table: a bfloat16 one as int16."""
    return table.view(torch.int16) if table.dtype == torch.bfloat16 else table


def _log_rows(pairs: int, pieces: int, num_rows: int) -> int:
    """Rows of the log: one for every pair, or the whole table for every piece where that is less."""
    return min(pairs, pieces * num_rows)


class _Pass:
    """What both directions know: tensors and numbers by the names of the kernels' parameters, and all forms."""

    def __init__(self, inputs: ValueInputs, num_columns: int, item_size: int) -> None:
        self.options, self.plan, self.slot_weights = inputs.options, inputs.options.plan, aligned(inputs.slot_weights)
        self.width, self.num_columns = inputs.slot_weights.shape[1], num_columns
        self.forms = value_forms(num_columns, self.width, item_size)
        self.numbers: dict[int, dict[str, int]] = {}
        self.most_rows = max(piece.rows for piece in self.options.pieces)
        # Partial sums of long segments, of one piece after the other.
        tiles = cdiv(self.most_rows * self.width, TILE)
        self.tensors: dict[str, Any] = {
            "PARTIALS": self.slot_weights.new_empty(2 * tiles, num_columns),
            "TICKETS": torch.zeros(tiles, self.forms.blocks.number, dtype=torch.int32, device=self.slot_weights.device),
            "PAIR_SLOTS": self.plan.pair_slots,
            "SLOTS": self.plan.slots,
            "HEADS": self.plan.heads,
            "LENGTHS": self.plan.lengths,
            "ORDER": self.plan.order,
            "WEIGHTS": self.slot_weights,
            "WRITE_WEIGHTS": aligned(inputs.write_weights),
            "SCALES": self.options.scales,
            "shift": self.options.shift,
        }

    def launch(self, kernel: Any, piece: ValuePiece, programs: int, **flags: bool) -> None:
        """Launch for a piece, with `programs` times the blocks of columns."""
        numbers = self.numbers.get(piece.number)
        if numbers is None:
            numbers = self.numbers[piece.number] = {
                "piece": piece.number,
                "write": piece.write,
                "first_row": piece.start,
                "first_pair": piece.start * self.width,
                "pairs": piece.rows * self.width,
                "first_kept": piece.first_kept,
                "first_read": piece.first_read,
                "first_token": piece.token,
                "first_error": piece.first_error,
                "written": piece.written,
            }
        self.forms.form(kernel, **flags).launch((programs, self.forms.blocks.number), self.tensors, numbers)


class TritonForward(_Pass):
    """One forward pass, as `SparseForward`."""

    def __init__(self, inputs: ValueInputs, table: Tensor, slots: Tensor, keep: bool) -> None:
        super().__init__(inputs, table.shape[1], table.itemsize)
        last, new = self.options.pieces[-1], self.slot_weights.new_empty
        written = last.first_error + last.written
        self.reads = new(last.first_read + last.rows - last.first_kept, self.num_columns)
        self.squares = new(written, self.forms.blocks.number)
        rows = _log_rows(self.slot_weights.numel(), len(self.options.pieces), table.shape[0])
        self.table, self.logs_tables = table, keep and rows < self.slot_weights.numel()
        self.old_rows = [table.new_empty(rows if keep else 0, self.num_columns)]
        self.errors = [new(written, self.num_columns)]
        self.slots = slots
        self.tensors |= {
            "TABLE": _bits(table),
            "LOG": _bits(self.old_rows[0]),
            "NAMES": slots,
            "COUNTS": self.plan.counts,
            "TARGETS": aligned(inputs.targets),
            "READS": self.reads,
            "ERRORS": self.errors[0],
            "SQUARES": self.squares,
            # Ignored but by a bfloat16 table.
            "ROUNDING": self.plan.counts if self.options.rounding is None else self.options.rounding,
        }

    def run(self, piece: ValuePiece, update: bool, keep_rows: bool) -> None:
        """Read a piece; write it, and keep what its rows were."""
        with named_range("memory read"):
            self.launch(kernels.read_rows_kernel, piece, piece.rows)
        pairs = piece.rows * self.width
        with named_range("memory write"):
            if keep_rows and self.logs_tables:
                self._logged_table(piece).copy_(self.table)
                keep_rows = False
            if update or keep_rows:
                self.launch(kernels.write_rows_kernel, piece, pairs, UPDATE=update, KEEP_LOG=keep_rows)

    def overwritten(self, piece: ValuePiece) -> tuple[Tensor, Tensor, Tensor]:
        """Slots at all positions of the piece, old rows, and which of these belongs to each position."""
        pairs = slice(piece.start * self.width, piece.stop * self.width)
        if self.logs_tables:
            return self.slots[pairs], self._logged_table(piece), self.plan.slots[pairs]
        return self.slots[pairs], self.old_rows[0], self.plan.heads[pairs]

    def _logged_table(self, piece: ValuePiece) -> Tensor:
        """Where the log has the whole table as it was before a piece."""
        return self.old_rows[0].unflatten(0, (len(self.options.pieces), -1))[piece.number]

    def squared_errors(self) -> Tensor:
        """[E]: sums over D of write weight * error^2."""
        return self.squares.sum(1)


class TritonBackward(_Pass):
    """One backward pass, as `SparseBackward`. A row of the adjoint is in use once a piece has added to it."""

    def __init__(
        self,
        inputs: ValueInputs,
        adjoint_plan: AdjointPlan | KernelAdjointPlan,
        old_rows: list[Tensor],
        errors: list[Tensor],
        grad_reads: Tensor,
        wants_table: bool,
    ) -> None:
        grad_reads, columns = aligned(grad_reads), grad_reads.shape[1]
        super().__init__(inputs, columns, grad_reads.itemsize)
        blocks, stream_rows = self.forms.blocks.number, inputs.write_weights.shape[0]
        rows, width = self.slot_weights.shape
        self.adjoint = grad_reads.new_empty(adjoint_plan.slots.shape[0], columns)
        self.grad_slot_weights = grad_reads.new_zeros(rows, 2 * blocks, width)
        self.grad_write_weights = grad_reads.new_zeros(stream_rows, blocks)
        self.grad_targets = grad_reads.new_zeros(stream_rows, columns)
        sources, sinks = adjoint_plan.links(self.plan, wants_table)
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
        self.tensors["PLACES"], self.tensors["COUNTS"] = self._of_log(adjoint_plan, old_rows[0].shape[0])

    def _of_log(self, adjoint_plan: AdjointPlan | KernelAdjointPlan, log_rows: int) -> tuple[Tensor, Tensor]:
        """For every pair its row of the log, and for every row of the log the readers of its slot that count."""
        if log_rows == self.plan.places.shape[0]:
            return self.plan.places, self.plan.counts
        # What was repeated has a table of the rows of the adjoint.
        rows = adjoint_plan.rows.view_as(self.plan.pair_slots) if self.options.undo_log == "recompute" else None
        places = (self.plan.pair_slots if rows is None else rows).clone()
        for piece in self.options.pieces[1:]:
            places[piece.start : piece.stop] += piece.number * (log_rows // len(self.options.pieces))
        counts = self.plan.counts.new_ones(log_rows)
        return places, counts.scatter_(0, places.flatten()[self.plan.order], self.plan.counts)

    def run(self, piece: ValuePiece, written: bool, wanted: bool) -> None:
        """Gradients of a piece's rows, and of the table before it."""
        self.launch(kernels.backward_rows_kernel, piece, piece.rows, WRITTEN=written)
        pairs = piece.rows * self.width
        if wanted:
            self.launch(kernels.adjoint_rows_kernel, piece, pairs)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of slot weights [T, J], write weights [S] and targets [S, D]."""
        return self.grad_slot_weights.sum(1), self.grad_write_weights.sum(1), self.grad_targets


def read_rows(table: Tensor, slots: Tensor, slot_weights: Tensor) -> Tensor:
    """Reads [T, D] of a call that writes nothing and keeps nothing for backward."""
    rows, width = slots.shape
    forms = value_forms(table.shape[1], width, table.itemsize)
    reads = slot_weights.new_empty(rows, table.shape[1])
    form = forms.form(kernels.read_rows_kernel)
    unused = {name: reads if name.isupper() else 0 for name in form.parameters}
    tensors = {"TABLE": _bits(table), "PAIR_SLOTS": slots, "WEIGHTS": aligned(slot_weights), "READS": reads}
    form.launch((rows, forms.blocks.number), unused, tensors)
    return reads


def _nothing(plan: WritePlan, pieces: list[ValuePiece], scales: Tensor) -> None:
    """The kernels take the plan as it is."""


VALUE_STEPS = ValueSteps(
    plan_writes, plan_adjoint, _nothing, TritonForward, TritonBackward, read_rows, counts_rows=False
)
"""What `implementation="triton"` adds to the driver of the values."""
