"""The fast weights of one layer along a text: what a cache holds of them. Ships inside exports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .implementations import read_and_write, read_only, write_pending

MEMORY_MODES = ("on", "frozen", "off")
"""on: read and write. frozen: read what was written so far, write nothing. off: read the initial memory."""


class MemoryFunctions(NamedTuple):
    """What computes a kind of memory, as the functions of `implementations` compute product key memories."""

    read_and_write: Callable[..., Any]
    write_pending: Callable[..., Any]
    read_only: Callable[..., Tensor]


PRODUCT_KEYS = MemoryFunctions(read_and_write, write_pending, read_only)


class LayerMemory:
    """The memory of one layer along a text.

    Its tables begin as those of the model and become a copy at the first write. With gradients enabled every write
    makes new ones, without they are written in place.

    Args:
        initial: the memory before any write.
        options: the memory's; with `boundary="carry"`, for tokens of one call wait for those of the next.
        functions: what computes it.
    """

    def __init__(self, initial: Any, options: Any, functions: MemoryFunctions = PRODUCT_KEYS):
        self.initial, self.options, self.functions = initial, options, functions
        self.state = initial
        """The tables as they are, and the tokens that wait to be written."""
        self._owned = False
        """The tables belong to this object alone, and no graph needs them."""

    def step(self, queries: Tensor, targets: Tensor, gates: Tensor | None = None, mask: Tensor | None = None,
             mode: str = "on") -> Tensor:  # fmt: skip
        """Read the next tokens of the text and, in mode `on`, write whatever chunks they complete.

        Args:
            queries: [B, T, heads, key_dim].
            targets: [B, T, value_dim].
            gates: [B, T] weights of the writes, or None for 1.
            mask: [B, T], 0 where a token must not be written; or None.
            mode: one of MEMORY_MODES.

        Returns:
            [B, T, value_dim]: what each token retrieved, with the tables as they stood when it arrived.

        Raises:
            ValueError: the number of sequences differs from that of the waiting tokens.
        """
        if mode != "on":
            tables = self.state if mode == "frozen" else self.initial
            return self.functions.read_only(queries, targets, tables, self.options)
        pending = self.state.pending
        if pending is not None and len(pending.queries) != len(queries):
            raise ValueError(
                f"this call has batch size {len(queries)}, but the tokens that wait in the cache have "
                f"{len(pending.queries)}; end the earlier text with cache.end_text() first (its memory is kept), or "
                "continue with the same sequences"
            )
        output = self.functions.read_and_write(
            queries, targets, gates, mask, self.state, self.options, in_place=self._may_write()
        )
        self._take(output)
        found: Tensor = output.retrieved
        return found

    def flush(self) -> None:
        """Write the waiting tokens whose targets are known, as one smaller chunk; the last of them keep waiting."""
        self._take(self.functions.write_pending(self.state, self.options, in_place=self._may_write()))

    def end_text(self) -> None:
        """Flush, then drop what still waits: what follows is another text and not its target."""
        self.flush()
        self.state = replace(self.state, pending=None)

    def reset(self) -> None:
        """Put the initial memory back and forget the waiting tokens."""
        self.state, self._owned = self.initial, False

    def clone(self) -> LayerMemory:
        """An independent copy: writes to one are not seen by the other. The tables are copied when either writes."""
        twin = LayerMemory(self.initial, self.options, self.functions)
        twin.state, self._owned = self.state, False
        return twin

    def select(self, sequences: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the waiting tokens; the tables are shared by all of them."""
        if self.state.pending is not None:
            sequences = sequences.to(self._table().device)
            self.state = replace(self.state, pending=self.state.pending.select(sequences))

    def _may_write(self) -> bool:
        # Outside inference mode torch refuses to write what was made inside it.
        foreign = self._table().is_inference() and not torch.is_inference_mode_enabled()
        return self._owned and not foreign and not torch.is_grad_enabled()

    def _table(self) -> Tensor:
        """One of the fast weights: all are alike in device, dtype and owner."""
        found: Tensor = list(self.state.tables().values())[-1]
        return found

    def _take(self, output: Any) -> None:
        before = self._table()
        self.state = output.state
        is_copy = self._table().data_ptr() != before.data_ptr()
        self._owned = (self._owned or is_copy) and not torch.is_grad_enabled()
