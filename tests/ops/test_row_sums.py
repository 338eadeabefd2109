"""Rows moved and summed with torch's own kernels."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.ops.fast_weight_memory.sparse.row_sums import put_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 6, 8, 24])
@pytest.mark.parametrize("first", [0, 1])
def test_rows_are_put_bit_for_bit(dtype: torch.dtype, columns: int, first: int) -> None:
    """Whatever bits they have, in numbers of 16 bytes or one by one; the table may begin anywhere."""
    generator = torch.Generator().manual_seed(columns)
    memory = torch.zeros((7 * columns + 1) * dtype.itemsize, dtype=torch.uint8)
    table = memory.view(dtype)[first : first + 7 * columns].view(7, columns)
    bits = torch.randint(256, (3, columns * dtype.itemsize), generator=generator, dtype=torch.uint8)
    put_rows(table, torch.tensor([5, 0, 2]), bits.view(dtype))
    expected = torch.zeros(7, columns * dtype.itemsize, dtype=torch.uint8)
    expected[[5, 0, 2]] = bits
    assert torch.equal(table.view(torch.uint8), expected)


def test_rows_are_put_into_some_columns_of_a_table() -> None:
    table = torch.zeros(7, 13)
    put_rows(table[:, 4:12], torch.tensor([5, 2]), torch.ones(2, 8))
    assert table[[5, 2], 4:12].eq(1).all() and table.sum() == 16
