"""Products with sparse matrices that have topk entries per row: the arithmetic of reads and writes.

torch's embedding bag is exactly this product, in a fixed order of summation and without a temporary of all pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SUM = 0
_WIDE = torch.complex128
"""The widest numbers that torch copies."""


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows [U] of a table [N, D] as a new tensor [U, D], bit for bit."""
    # With `out` given, index_select is five times faster on CPU than without.
    return torch.index_select(table, 0, rows, out=table.new_empty(rows.shape[0], table.shape[1]))


def _holds_wide(x: Tensor) -> bool:
    """Whether a matrix can be seen as one of wide numbers."""
    sizes = x.shape[1], int(x.storage_offset())
    return x.is_contiguous() and all(size * x.element_size() % _WIDE.itemsize == 0 for size in sizes)


def put_rows(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write `values` [U, D] to distinct rows [U] of a table [N, D], bit for bit."""
    if _holds_wide(table) and _holds_wide(values):
        # torch copies number by number: three times faster in numbers of 16 bytes.
        table.view(_WIDE).index_put_((rows,), values.view(_WIDE))
    else:
        table.index_copy_(0, rows, values)


def sum_rows(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table.

    Args:
        table: [N, D].
        rows: [P] int64.
        starts: [S] int64, ascending; sum s runs over the pairs from `starts[s]` to the next start.
        weights: [P].

    Returns:
        [S, D], where sum s = sum over its pairs p of weights[p] * table[rows[p]]; a sum without pairs is 0.
    """
    return torch.embedding_bag(table, rows, starts, False, _SUM, False, weights)[0]


def paired_dots(x: Tensor, table: Tensor, rows: Tensor, starts: Tensor, owners: Tensor) -> Tensor:
    """Dot products <x[owner of pair p], table[rows[p]]>, [P]; `owners` [P] is the sum a pair belongs to.

    This is what the embedding bag's backward computes for its weights, called directly.
    """
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(x, table, rows, starts, owners, _SUM)
