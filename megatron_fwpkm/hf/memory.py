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

    Its tables begin as those of the model, which it never writes: what a write changes is kept apart, or is a copy.
    With gradients enabled every write makes new ones, without they are written in place.

    Args:
        initial: the memory before any write.
        options: the memory's; with `boundary="carry"`, for tokens of one call wait for those of the next.
        functions: what computes it.
        source: the memory before any write as the model has it now, which may have moved; or None.
    """

    def __init__(self, initial: Any, options: Any, functions: MemoryFunctions = PRODUCT_KEYS,
                 source: Callable[[], Any] | None = None):  # fmt: skip
        self.initial, self.options, self.functions, self.source = initial, options, functions, source
        self.state = initial
        """The tables as they are, and the tokens that wait to be written."""
        self._owned = False
        """What writes change belongs to this object alone, and no graph needs it."""

    @property
    def is_fresh(self) -> bool:
        """Nothing was written, and no token waits."""
        return self.state is self.initial

    @property
    def nbytes(self) -> int:
        """Bytes of what is not the model's: rows of its own or tables, and waiting tokens."""
        theirs = {table.data_ptr() for table in self.initial.tables().values()}
        own = sum(table.nbytes for table in self.state.tables().values() if table.data_ptr() not in theirs)
        overlay, pending = getattr(self.state, "overlay", None), self.state.pending
        waiting = [] if pending is None else [field for field in vars(pending).values() if field is not None]
        return own + (0 if overlay is None else overlay.nbytes) + sum(field.nbytes for field in waiting)

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
        twin = LayerMemory(self.initial, self.options, self.functions, self.source)
        twin.state, self._owned = self.state, False
        return twin

    def select(self, sequences: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the waiting tokens; the tables are shared by all of them."""
        if self.state.pending is not None:
            sequences = sequences.to(self._table().device)
            self.state = replace(self.state, pending=self.state.pending.select(sequences))

    def _may_write(self) -> bool:
        # Outside inference mode torch refuses to write what was made inside it.
        overlay = getattr(self.state, "overlay", None)
        written = self._table() if overlay is None else overlay.table
        foreign = written.is_inference() and not torch.is_inference_mode_enabled()
        return self._owned and not foreign and not torch.is_grad_enabled()

    def _table(self) -> Tensor:
        """One of the fast weights: all are alike in device, dtype and owner."""
        found: Tensor = list(self.state.tables().values())[-1]
        return found

    def _take(self, output: Any) -> None:
        before = self._written()
        self.state = output.state
        self._owned = (self._owned or self._written() != before) and not torch.is_grad_enabled()

    def _written(self) -> Any:
        """What a write changes: the overlay, or one of the tables; a copy is another object."""
        overlay = getattr(self.state, "overlay", None)
        return self._table().data_ptr() if overlay is None else overlay
