"""The only thing the memory asks of a table whose value columns are spread over processes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TableSharding(Protocol):
    """Collectives that make a memory right when ``values`` holds only this process's columns (DESIGN section 3).

    Reads and writes of columns need no communication. What every column depends on (slot weights, gates) receives one
    partial gradient per process, and a squared error is a sum over columns. ``ops`` knows no process groups: the layer
    that owns them implements this.
    """

    def copy_to_shards(self, x: Tensor) -> Tensor:
        """Return ``x`` unchanged; in backward, sum its gradient over the processes that share the columns."""
        ...

    def sum_columns(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over the processes that share the columns; no gradient is needed."""
        ...
