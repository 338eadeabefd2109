"""The only things the memory asks of tables, and its block of columns, that are spread over processes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TableSharding(Protocol):
    """Collectives that make a memory right whose tables are spread over `size` processes (DESIGN section 3).

    Process `rank` holds columns [rank * D / size, (rank + 1) * D / size) of `values` and `targets`, and rows
    [rank * n / size, (rank + 1) * n / size) of every list of n sub-keys. Queries, gates and masks are the same
    everywhere.

    Reads and writes of columns need no communication. What every column depends on (slot weights, gates) receives one
    partial gradient per process, and a squared error is a sum over columns. Every process proposes its best sub-keys,
    and all make the same choice among the proposals. `ops` knows no process groups: the layer that owns them
    implements this. All processes must make the same calls in the same order.

    Attributes:
        rank: which part of the tables this process holds.
        size: number of processes that share the tables.
    """

    rank: int
    size: int

    def copy_to_shards(self, x: Tensor) -> Tensor:
        """Return `x` unchanged; in backward, sum its gradient over the processes that share the tables."""
        ...

    def sum_shards(self, x: Tensor) -> Tensor:
        """Return the sum of `x` over the processes as a new tensor, the same bits on all of them; no gradient."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """Return every process's `x` [...] as [size, ...], by rank and bit for bit; no gradient."""
        ...


class ColumnSums(Protocol):
    """Sums over processes that hold columns of the same rows.

    Attributes:
        size: number of processes.
        num_columns: columns of all processes together.
    """

    size: int
    num_columns: int

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of `x` over the processes; in backward, sum the gradients of all its users, too."""
        ...

    def sum_shards(self, x: Tensor) -> Tensor:
        """Return the sum of `x` over the processes, the same bits on all of them; no gradient."""
        ...
