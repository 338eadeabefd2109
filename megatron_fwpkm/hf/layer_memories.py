"""The memories of one layer for all sequences of a batch: one for each, or one that all share. Ships inside exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .memory import LayerMemory

_UNCOMPILED = torch.compiler.disable(reason="what a memory writes is decided on the host, from call to call")
"""The compiled parts of a model end here: traced, every chunk that is written would compile anew."""


class LayerMemories:
    """What a cache holds of the memory of one layer.

    With an owner for each sequence, every one is read and written alone, exactly as in a call of its own: neither
    neighbours nor padding can matter.

    Attributes:
        owners: one memory per sequence, or the one that all sequences share.
        shared: which of the two.

    Raises:
        ValueError: the memory has no data.
    """

    def __init__(self, first: LayerMemory, *, shared: bool = False, sequences: int = 1):
        if any(table.is_meta for table in first.initial.tables().values()):
            raise ValueError(
                "the fast weights of this model have no data (device 'meta'): they are offloaded, but a cache keeps "
                "them from call to call; load the model with offload_buffers=False, or call it with use_cache=False"
            )
        self.shared = shared
        self.owners = [first] if shared or sequences == 1 else [first.clone() for _ in range(sequences)]

    @property
    def state(self) -> object:
        """The fast weights where there is one owner."""
        assert len(self.owners) == 1, "the sequences of this cache have memories of their own: see `owners`"
        return self.owners[0].state

    @_UNCOMPILED
    def expect(self, sequences: int) -> None:
        """Make ready for a call of so many sequences that writes.

        Raises:
            ValueError: there are as many memories as earlier calls had sequences.
        """
        if self.shared or len(self.owners) == sequences:
            return
        if len(self.owners) > 1 or not self.owners[0].is_fresh:
            held = "one memory" if len(self.owners) == 1 else f"{len(self.owners)} memories, one for each sequence"
            raise ValueError(
                f"this call has batch size {sequences}, but the cache holds {held}; use cache.fork({sequences}) to "
                "give every sequence a copy of one memory, pass the same sequences as before, or read without writing "
                "(memory='frozen')"
            )
        self.owners = [self.owners[0].clone() for _ in range(sequences)]

    @_UNCOMPILED
    def step(self, queries: Tensor, targets: Tensor, gates: Tensor | None = None,
             counts: Sequence[int] | None = None, mode: str = "on") -> Tensor:  # fmt: skip
        """Read the next tokens of every sequence and, in mode `on`, write whatever chunks they complete.

        Args:
            queries: [B, T, ...] as the memory takes them.
            targets: [B, T, value_dim].
            gates: [B, T] weights of the writes, or None for 1.
            counts: tokens of every sequence, which are its first ones; None for T.
            mode: one of MEMORY_MODES.

        Returns:
            [B, T, value_dim]: what each token retrieved; zeros beyond the tokens of a sequence.
        """
        if len(self.owners) == 1 or mode == "off":
            return self.owners[0].step(queries, targets, gates, mode=mode)
        if mode == "frozen" and all(owner.is_fresh for owner in self.owners):
            return self.owners[0].step(queries, targets, gates, mode=mode)
        steps = [partial(owner.step, mode=mode) for owner in self.owners]
        return each_sequence(steps, queries, targets, gates, counts)

    def flush(self) -> None:
        """Write the waiting tokens of every sequence whose targets are known, as one smaller chunk."""
        for owner in self.owners:
            owner.flush()

    def end_text(self) -> None:
        """Flush, then drop what still waits."""
        for owner in self.owners:
            owner.end_text()

    def reset(self) -> None:
        """Put the initial memory back and forget the waiting tokens."""
        for owner in self.owners:
            owner.reset()

    def clone(self) -> LayerMemories:
        """Independent copies, which are made when either writes."""
        return self._of([owner.clone() for owner in self.owners])

    def select(self, sequences: Tensor, before: int) -> None:
        """Keep, repeat or reorder the sequences, of which there were `before` (0: no text has begun)."""
        if self.shared:
            self.owners[0].select(sequences)
        elif len(self.owners) > 1 or before <= 1:
            chosen = sequences.tolist()
            twice = len(set(chosen)) < len(chosen)
            self.owners = [self.owners[index].clone() if twice else self.owners[index] for index in chosen]

    def joined(self, others: Sequence[LayerMemories]) -> LayerMemories:
        """The memories of several caches in one, each as the sequence of its own."""
        return self._of([owner for one in (self, *others) for owner in one.owners])

    def only(self, row: int) -> LayerMemories:
        """The memory of one sequence, itself and not a copy."""
        return self._of([self.owners[row] if len(self.owners) > 1 else self.owners[0]])

    @property
    def nbytes(self) -> int:
        """Bytes of what belongs to these memories alone; those of the model are not counted."""
        return sum(owner.nbytes for owner in self.owners)

    def _of(self, owners: list[LayerMemory]) -> LayerMemories:
        twin = LayerMemories(owners[0], shared=self.shared)
        twin.owners = owners
        return twin


def each_sequence(
    functions: Sequence[Callable[..., Tensor]],
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    counts: Sequence[int] | None,
) -> Tensor:
    """Call a function of (queries, targets, gates) for every sequence with its own tokens only.

    Args:
        functions: one for each of B sequences; returns [1, tokens, value_dim].
        queries: [B, T, ...].
        targets: [B, T, value_dim].
        gates: [B, T] or None.
        counts: tokens of every sequence, which are its first ones; None for T.

    Returns:
        [B, T, value_dim], zeros beyond the tokens of a sequence.
    """
    length = queries.shape[1]
    found = []
    for row, function in enumerate(functions):
        count = length if counts is None else counts[row]
        part = slice(row, row + 1), slice(0, count)
        if not count:
            found.append(targets.new_zeros(1, length, targets.shape[2]))
            continue
        read = function(queries[part], targets[part], None if gates is None else gates[part])
        found.append(read if count == length else torch.nn.functional.pad(read, (0, 0, 0, length - count)))
    return torch.cat(found)
