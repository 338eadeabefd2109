"""In which forms the kernels of the block are launched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor

from ...kernel_forms import KernelForm, next_power_of_2
from .block_kernels import TILE

PROGRAMS = 1024
"""Most programs that add up rows, whatever the device: it decides the order of sums over tokens."""
COLUMNS = 32
"""Columns of a program that adds up what those programs have."""
_NUMBERS = 8
"""Numbers of a row that a thread holds, 16 bytes of float16 or bfloat16."""
_MAX_WARPS = 16
"""More would leave a thread too few registers."""


@cache
def row_form(kernel: Any, width: int, absent: frozenset[str] = frozenset(), **constants: float) -> KernelForm:
    """How a kernel is launched of which a program holds rows of `width` columns.

    Args:
        kernel: under `@triton.jit`.
        width: H or D.
        absent: names of pointers that are not passed.
        constants: others of the kernel's, such as EPS.
    """
    block = max(32, next_power_of_2(width))
    numbers = TILE.value * COLUMNS if "COLUMNS" in kernel.arg_names else block
    warps = min(_MAX_WARPS, max(1, numbers // (32 * _NUMBERS)))
    known = {"H": width, "D": width, "BLOCK": block, "COLUMNS": COLUMNS, **constants}
    return KernelForm.of(kernel, known, warps, absent)


def launch_rows(
    kernel: Any,
    programs: int,
    width: int,
    tensors: Mapping[str, Tensor | None],
    numbers: Mapping[str, int],
    **constants: float,
) -> None:
    """Launch a kernel.

    Args:
        kernel: under `@triton.jit`.
        programs: how many.
        width: columns of its rows.
        tensors: by the names of the kernel's parameters; those that are None are not passed.
        numbers: arguments that are no tensors.
        constants: of the form.
    """
    absent = frozenset(name for name, tensor in tensors.items() if tensor is None)
    row_form(kernel, width, absent, **constants).launch((programs,), tensors, numbers)
