# mypy: disable-error-code="no-untyped-def"
"""Rows of a bfloat16 table in Triton, by their bits: its interpreter is silently wrong about bfloat16 arithmetic.

Kernels see a bfloat16 table as int16, compute in float32 and round stochastically, with the bits of `rounding.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_to_float(row):
    """A row as it was loaded, in the dtype of arithmetic: bits of bfloat16 become float32, others stay."""
    if row.dtype == tl.int16:
        row = (row.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return row


@triton.jit
def float_to_row(row, TABLE, ROUNDING, slot, write, BLOCK: tl.constexpr):
    """This program's columns of a row in the form of TABLE; see `round_rows` for the rounding.

    Columns of the table begin at a multiple of 4 on every process, so four neighbours share a counter.
    """
    if TABLE.dtype.element_ty == tl.int16:
        number = tl.load(ROUNDING + 1) + write
        group = (tl.load(ROUNDING + 2) + tl.program_id(1) * BLOCK) // 4
        groups = group.to(tl.uint32) + tl.arange(0, BLOCK // 4).to(tl.uint32)
        low, high = (number & 0xFFFFFFFF).to(tl.uint32), (number >> 32).to(tl.uint32)
        first, second, third, fourth = tl.philox(tl.load(ROUNDING), groups, slot.to(tl.uint32), low, high, 7)
        words = tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), [BLOCK])
        bits = row.to(tl.int32, bitcast=True)
        rounded = (bits + (words & 0xFFFF).to(tl.int32)) >> 16
        row = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.int16)
    return row
