"""Kernels for the tests of the compile gate: one as it should be, and one for each way to be wrong."""

from __future__ import annotations

import triton
import triton.language as tl

from megatron_fwpkm.ops.kernel_forms import KernelVariant


@triton.jit
def _scaled(row, scale):
    return row * scale


@triton.jit
def scale_rows(TABLE, OUT, scale, D: tl.constexpr):
    """OUT[i] = scale * TABLE[i], one program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, D)
    tl.store(OUT + row * D + columns, _scaled(tl.load(TABLE + row * D + columns), scale))


@triton.jit
def add_to_pointer(OUT, offset):
    """Wrong where the offset is declared as a pointer, as a new constant would be."""
    tl.store(OUT + offset, 1.0)


@triton.jit
def nobody_compiles_this(OUT):
    """In no variant."""
    tl.store(OUT, 1.0)


_ROWS = {"TABLE": "*fp32", "OUT": "*fp32", "scale": "fp32"}
_FEW_REGISTERS = {"num_warps": 4, "maxnreg": 24}

KERNEL_VARIANTS = (
    KernelVariant("good", scale_rows, _ROWS, {"D": 512}, moves_rows=True),
    KernelVariant("narrow", scale_rows, {**_ROWS, "TABLE": "*fp32:4"}, {"D": 512}, moves_rows=True),
    KernelVariant("spilling", scale_rows, _ROWS, {"D": 16384}, _FEW_REGISTERS),
    KernelVariant("wrong types", add_to_pointer, {"OUT": "*fp32", "offset": "*fp32"}, {}),
    KernelVariant("spilling, as it may", scale_rows, _ROWS, {"D": 16384}, _FEW_REGISTERS, may_spill=True, slow=True),
)
