# mypy: disable-error-code="no-untyped-def"
"""Triton kernels that turn sorted pairs into plans (`write_plan.py`): binary searches instead of running maxima.

Symbols (README.md): P pairs (token, slot) of a call: T * J.

A scan over P numbers is the work of one program on a GPU; a search per position is that of many.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_below(ORDERED, wanted, total, steps):
    """How many of `total` ascending numbers are below each of `wanted`; 2 ** steps is more than `total`."""
    count = tl.zeros(wanted.shape, tl.int64)
    for step in range(steps):
        more = count + (tl.full([], 1, tl.int64) << (steps - 1 - step).to(tl.int64))
        exists = more <= total
        number = tl.load(ORDERED + more - 1, mask=exists, other=0)
        count = tl.where(exists & (number < wanted), more, count)
    return count


@triton.jit(do_not_specialize=["num_slots", "total", "steps"])
def write_plan_kernel(
    ORDERED,  # [P] piece * num_slots + slot, ascending
    ORDER,  # [P] pair at every position
    SLOTS,  # [P] out: slot at every position
    HEADS,  # [P] out: first position of its segment
    LENGTHS,  # [P] out: pairs of its segment
    PLACES,  # [P] out: for every pair the first position of its segment
    IS_HEAD,  # [P] out: whether a position is the first of its segment
    num_slots,
    total,  # P
    steps,
    BLOCK: tl.constexpr,
):
    """What the kernels of the values need to know of every position. Grid: (blocks of BLOCK positions)."""
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = position < total
    key = tl.load(ORDERED + position, mask=exists, other=0)
    head = count_below(ORDERED, key, total, steps)
    stop = count_below(ORDERED, key + 1, total, steps)
    tl.store(SLOTS + position, (key % num_slots).to(tl.int64), mask=exists)
    tl.store(HEADS + position, head, mask=exists)
    tl.store(LENGTHS + position, stop - head, mask=exists)
    tl.store(IS_HEAD + position, head == position, mask=exists)
    tl.store(PLACES + tl.load(ORDER + position, mask=exists, other=0), head, mask=exists)


@triton.jit(do_not_specialize=["total", "steps"])
def adjoint_plan_kernel(
    ORDERED,  # [P] slots, ascending
    BY_SLOT,  # [P] position of the write plan at every place of this list; pieces ascend within a slot
    ORDER,  # [P] pair at every position of the write plan
    HEADS,  # [P]
    LENGTHS,  # [P]
    ROWS,  # [P] out: for every pair the row of its slot
    SOURCES,  # [P] out: the same, or -1 where no later piece reads the slot
    SINKS,  # [P] out: the same, or -1 where no earlier piece reads the slot
    SLOTS,  # [rows] out: the slot of every row that is in use
    total,  # P
    steps,
    SLOT_IS_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Which rows of the table's gradient a pair has to do with. Grid: (blocks of BLOCK places).

    A row is the slot itself with SLOT_IS_ROW, and otherwise the first place of its slot: neither needs a running sum.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = place < total
    slot = tl.load(ORDERED + place, mask=exists, other=0)
    first = count_below(ORDERED, slot, total, steps)
    last = count_below(ORDERED, slot + 1, total, steps) - 1
    position = tl.load(BY_SLOT + place, mask=exists, other=0)
    head = tl.load(HEADS + position, mask=exists, other=0)
    stop = head + tl.load(LENGTHS + position, mask=exists, other=0)
    row = slot.to(tl.int64) if SLOT_IS_ROW else first
    # Positions of a slot ascend: those outside the segment of this one belong to other pieces.
    earlier = tl.load(BY_SLOT + first, mask=exists, other=0) < head
    later = tl.load(BY_SLOT + last, mask=exists, other=0) >= stop
    pair = tl.load(ORDER + position, mask=exists, other=0)
    tl.store(ROWS + pair, row, mask=exists)
    tl.store(SOURCES + pair, tl.where(later, row, -1), mask=exists)
    tl.store(SINKS + pair, tl.where(earlier, row, -1), mask=exists)
    tl.store(SLOTS + row, slot.to(tl.int64), mask=exists & (first == place))
