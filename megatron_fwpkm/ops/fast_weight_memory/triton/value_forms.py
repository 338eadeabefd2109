"""The forms in which the kernels of the values table are launched."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton

from ...kernel_forms import KernelForm
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
        size = triton.next_power_of_2(num_columns)
    else:
        size = min((512, 256, 128), key=lambda size: (triton.cdiv(num_columns, size) * size, -size))
    return ColumnBlocks(size, triton.cdiv(num_columns, size), max(1, size * item_size // 512))


class ValueForms:
    """All forms for one shape.

    Args:
        num_columns: D.
        width: J, pairs of a row.
        item_size: bytes of a number of the rows that are moved: of the table in forward, of gradients in backward.
    """

    def __init__(self, num_columns: int, width: int, item_size: int = 4) -> None:
        self.blocks = column_blocks(num_columns, item_size)
        self._columns, self._width = num_columns, width

    def read(self) -> KernelForm:
        """Reads and errors of a piece."""
        return self._form(read_rows_kernel, J=self._width)

    def write(self, *, update: bool, keep_log: bool) -> KernelForm:
        """The write of a piece, or only its log."""
        return self._form(write_rows_kernel, J=self._width, TILE=TILE, KEEP_LOG=keep_log, UPDATE=update)

    def finish_write(self) -> KernelForm:
        """The write of slots with many pairs."""
        return self._form(finish_write_kernel, TILE=TILE)

    def backward(self, *, written: bool) -> KernelForm:
        """Gradients of a piece's rows; `written` when a later piece reads what it wrote."""
        pairs = min(_PAIRS_AT_ONCE, triton.next_power_of_2(self._width))
        return self._form(backward_rows_kernel, J=self._width, PAIRS=pairs, WRITTEN=written)

    def adjoint(self) -> KernelForm:
        """The gradient of the table before a piece."""
        return self._form(adjoint_rows_kernel, J=self._width, TILE=TILE)

    def finish_adjoint(self) -> KernelForm:
        """The same for slots with many pairs."""
        return self._form(finish_adjoint_kernel, TILE=TILE)

    def _form(self, kernel: Any, **constants: Any) -> KernelForm:
        return KernelForm(kernel, {"D": self._columns, "BLOCK": self.blocks.size, **constants}, self.blocks.warps)
