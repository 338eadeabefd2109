"""The forms in which the kernels of the values table are launched, for the compile gate."""

from __future__ import annotations

from typing import Any

from ...kernel_variants import KernelVariant
from .value_kernels import (
    TILE,
    adjoint_rows_kernel,
    backward_rows_kernel,
    finish_adjoint_kernel,
    finish_write_kernel,
    read_rows_kernel,
    write_rows_kernel,
)

_INDICES = {"SLOTS", "NAMES", "HEADS", "LENGTHS", "COUNTS", "ORDER", "PLACES", "SOURCES", "SINKS", "ROUNDING"}


def _variant(name: str, kernel: Any, columns: int, block: int, row: str = "*fp32", **more: int) -> KernelVariant:
    constants = {"D": columns, "BLOCK": block, **more}
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if argument in ("TABLE", "LOG"):
            signature[argument] = row
        elif argument.isupper():
            signature[argument] = "*i64" if argument in _INDICES else "*fp32"
        else:
            signature[argument] = "i32"
    # Backward and adjoint count their threads by float32 rows.
    per_warp = 256 if row == "*i16" and "PULL" not in more else 128
    options = {"num_warps": max(1, block // per_warp), "enable_fp_fusion": False}
    form = "bf16" if row == "*i16" else "fp32"
    return KernelVariant(f"values, {name} {form} D={columns}", kernel, signature, constants, options, moves_rows=True)


def _variants(columns: int, block: int, pairs: int) -> tuple[KernelVariant, ...]:
    """All kernels as `value_steps.py` launches them for ``pairs`` slots per row."""
    sizes, held = (columns, block), min(8, pairs)
    return (
        *_variants_of_tables(columns, block, pairs, "*fp32"),
        _variant("log", write_rows_kernel, *sizes, J=pairs, TILE=TILE, KEEP_LOG=True, UPDATE=False),
        _variant("backward of the last piece", backward_rows_kernel, *sizes, J=pairs, PAIRS=held, PULL=False),
        _variant("adjoint", adjoint_rows_kernel, *sizes, J=pairs, TILE=TILE),
        _variant("end of adjoint", finish_adjoint_kernel, *sizes, TILE=TILE),
    )


def _variants_of_tables(columns: int, block: int, pairs: int, row: str) -> tuple[KernelVariant, ...]:
    """Those that a bfloat16 table changes."""
    sizes = columns, block, row
    return (
        _variant("read", read_rows_kernel, *sizes, J=pairs),
        _variant("write", write_rows_kernel, *sizes, J=pairs, TILE=TILE, KEEP_LOG=True, UPDATE=True),
        _variant("end of write", finish_write_kernel, *sizes, TILE=TILE),
        _variant("backward", backward_rows_kernel, *sizes, J=pairs, PAIRS=min(8, pairs), PULL=True),
    )


KERNEL_VARIANTS = (*_variants(512, 512, 8), *_variants_of_tables(512, 512, 8, "*i16"), *_variants(768, 256, 32))
"""The paper's shape with either table, and one with several blocks of columns and several passes over pairs."""
