"""The plans of `write_plan.py` in Triton: one sort and one kernel each, whatever the number of pieces.

Shapes: T rows read by all pieces, J = heads * topk, P = T * J pairs.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernel_forms import KernelForm, cdiv
from ..write_plan import ValuePiece, WritePlan, count_readers, sort_keys
from . import plan_kernels as kernels

_BLOCK = 256
"""Positions of a program."""
_WARPS = 8
"""Of a program: a thread has one position, for registers of two are spilled on sm_100."""


@cache
def write_plan_form(block: int = _BLOCK) -> KernelForm:
    """How the kernel of the write plan is launched."""
    return KernelForm(kernels.write_plan_kernel, {"BLOCK": block}, _WARPS)


@cache
def adjoint_plan_form(slot_is_row: bool, block: int = _BLOCK) -> KernelForm:
    """How the kernel of the adjoint's plan is launched."""
    return KernelForm(kernels.adjoint_plan_kernel, {"SLOT_IS_ROW": slot_is_row, "BLOCK": block}, _WARPS)


class KernelAdjointPlan(NamedTuple):
    """Where the gradient of the table is kept in backward, as `AdjointPlan`; rows that are not in use lie anywhere.

    Attributes:
        rows: [P] int64, for every pair the row of its slot.
        slots: [min(P, num_slots)] int64, the slot of every row; `num_slots` for rows that are not in use.
        sources: see `AdjointPlan.links`.
        sinks: the same, if the table itself needs no gradient.
    """

    rows: Tensor
    slots: Tensor
    sources: Tensor
    sinks: Tensor

    def links(self, plan: WritePlan, wants_table: bool) -> tuple[Tensor, Tensor]:
        """As `AdjointPlan.links`."""
        return self.sources, self.rows if wants_table else self.sinks


def _like(order: Tensor, number: int) -> tuple[Tensor, ...]:
    """New lists like one of whole numbers, each at a multiple of 16 bytes."""
    total = order.shape[0]
    return order.new_empty(number, total + total % 2)[:, :total].unbind()


def plan_writes(slot_indices: Tensor, pieces: list[ValuePiece], num_slots: int) -> WritePlan:
    """As `make_write_plan`."""
    ordered, order = sort_keys(slot_indices, pieces, num_slots)
    total = order.shape[0]
    slots, heads, lengths, places = _like(order, 4)
    is_head = torch.empty(total, dtype=torch.bool, device=order.device)
    arguments = {
        "ORDERED": ordered,
        "ORDER": order,
        "SLOTS": slots,
        "HEADS": heads,
        "LENGTHS": lengths,
        "PLACES": places,
        "IS_HEAD": is_head,
        "num_slots": num_slots,
        "total": total,
        "steps": total.bit_length(),
    }
    write_plan_form(_BLOCK).launch((cdiv(total, _BLOCK),), arguments)
    counts = count_readers(order, heads, lengths, pieces, slot_indices.shape[1])
    return WritePlan(slot_indices, order, slots, heads, lengths, counts, places, is_head)


def plan_adjoint(plan: WritePlan, num_slots: int, wants_table: bool) -> KernelAdjointPlan:
    """As `make_adjoint_plan`, but for the numbers of the rows.

    Args:
        plan: of the call.
        num_slots: rows of its table.
        wants_table: the slots of rows are asked for; otherwise those of rows that are not in use are not written.
    """
    ordered, order = plan.slots.to(torch.int32).sort(stable=True)
    total = order.shape[0]
    rows, sources, sinks = _like(order, 3)
    count = min(total, num_slots)
    slots = order.new_full((count,), num_slots) if wants_table else order.new_empty(count)
    arguments = {
        "ORDERED": ordered,
        "BY_SLOT": order,
        "ORDER": plan.order,
        "HEADS": plan.heads,
        "LENGTHS": plan.lengths,
        "ROWS": rows,
        "SOURCES": sources,
        "SINKS": sinks,
        "SLOTS": slots,
        "total": total,
        "steps": total.bit_length(),
    }
    adjoint_plan_form(total >= num_slots, _BLOCK).launch((cdiv(total, _BLOCK),), arguments)
    return KernelAdjointPlan(rows, slots, sources, sinks)
