"""Bytes that a call of the memory must move to and from main memory, stage by stage.

A stage is what must be complete before the next can begin: a read of a chunk, then its write. Every stage moves each
distinct row of its chunk once, however many tokens share it, and keeps nothing in a cache for the next stage, because
the rows of a chunk do not fit into one at the sizes that matter. Where they do fit, a share above 100 % is possible.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.shapes import Shape

FLOAT = 4
"""Bytes of queries, targets, sub-keys and gradients."""


def forward_stages(shape: Shape, distinct_rows: Sequence[int], *, training: bool) -> dict[str, int]:
    """Bytes of each stage of a forward over all chunks.

    Args:
        shape: sizes of the call.
        distinct_rows: per chunk, the slots that its tokens read.
        training: rows are logged for backward.
    """
    tokens, rows, chunks = shape.batch * shape.tokens, sum(distinct_rows), len(distinct_rows)
    pairs = tokens * shape.heads * shape.topk
    table, row = _bytes_of_rows(shape)
    sub_keys = FLOAT * shape.heads * shape.num_subkeys * shape.key_dim
    return {
        # Queries and sub-keys in, an index and a score per pair out; then the sub-keys move.
        "selection": FLOAT * tokens * shape.heads * shape.key_dim + 3 * chunks * sub_keys + 2 * FLOAT * pairs,
        # Rows and targets in, reads and errors out.
        "read": rows * table + 3 * tokens * row + 2 * FLOAT * pairs,
        # Errors in; a row goes in, out and into the log.
        "write": rows * (2 * table + (_bytes_of_log(shape) if training else 0)) + tokens * row + 2 * FLOAT * pairs,
    }


def backward_stages(shape: Shape, distinct_rows: Sequence[int]) -> dict[str, int]:
    """Bytes of each stage of a backward over all chunks; arguments as in `forward_stages`."""
    tokens, rows, chunks = shape.batch * shape.tokens, sum(distinct_rows), len(distinct_rows)
    pairs, row = tokens * shape.heads * shape.topk, FLOAT * shape.value_dim
    queries = FLOAT * tokens * shape.heads * shape.key_dim
    sub_keys = FLOAT * shape.heads * shape.num_subkeys * shape.key_dim
    return {
        # Logged rows and their adjoints, errors and gradient in; gradients of read and target out.
        "backward_token": rows * (_bytes_of_log(shape) + row) + 4 * tokens * row + 3 * FLOAT * pairs,
        "adjoint": rows * 2 * row + tokens * row + 2 * FLOAT * pairs,
        "backward_selection": 2 * queries + 3 * chunks * sub_keys + 2 * FLOAT * pairs,
    }


def _bytes_of_rows(shape: Shape) -> tuple[int, int]:
    """Of a row of the table, and of a row of anything else."""
    return (2 if shape.table_dtype == "bfloat16" else FLOAT) * shape.value_dim, FLOAT * shape.value_dim


def _bytes_of_log(shape: Shape) -> int:
    """Of a logged row. What `recompute` moves is counted as for a whole log, which it stands for."""
    return 2 * shape.value_dim if shape.undo_log == "bf16" else _bytes_of_rows(shape)[0]


def call_bytes(shape: Shape, distinct_rows: Sequence[int], *, training: bool) -> int:
    """Bytes of a whole call: forward, and with `training` backward."""
    total = sum(forward_stages(shape, distinct_rows, training=training).values())
    return total + (sum(backward_stages(shape, distinct_rows).values()) if training else 0)
