"""Taking back the last tokens of a text, which assisted decoding does after every draft. Ships inside exports.

A write cannot be undone, so a cache that may be cropped keeps what it was before each call. Cropping goes back to the
last of these, and what of that call stays is read again with the next one: for the tokens of a draft that is no more
work than the draft itself, and right for any kind of layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .rows import ReadText

if TYPE_CHECKING:
    from .cache import FwPKMCache


class Unread(NamedTuple):
    """Tokens that are part of the text, and are read before those of the next call.

    Attributes:
        embeddings: [B, m, hidden_size].
        ids: [B, m], or None where the call gave embeddings.
    """

    embeddings: Tensor
    ids: Tensor | None

    def before(
        self, hidden: Tensor, ids: Tensor | None, mask: Tensor | None, positions: Tensor | None, text: ReadText
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Embeddings, ids, mask and positions of a call with these tokens before it, which come after `text`."""
        number = self.embeddings.shape[1]
        both = None if ids is None or self.ids is None else torch.cat([self.ids.to(ids.device), ids], 1)
        if mask is not None and mask.shape[1] <= text.places + number:  # of the call alone
            mask = torch.cat([mask.new_ones(len(mask), number), mask], 1)
        if positions is not None:
            earlier = text.positions(number, positions.device).expand(len(positions), -1)
            positions = torch.cat([earlier, positions], 1)
        return torch.cat([self.embeddings, hidden], 1), both, mask, positions


class TakenCall(NamedTuple):
    """A call that may be taken back: the cache before it, and what it gave."""

    before: FwPKMCache
    given: Unread


class Past:
    """The calls since the text was last cropped."""

    def __init__(self) -> None:
        self._calls: list[TakenCall] = []

    def remember(self, before: FwPKMCache, hidden: Tensor, ids: Tensor | None) -> None:
        """Add a call with [B, T, ...] tokens, none of them padding."""
        self._calls.append(TakenCall(before, Unread(hidden.detach(), ids)))

    def go_back(self, length: int) -> tuple[FwPKMCache, Unread | None] | None:
        """The cache at the last call that began at most at `length`, and the tokens from there to `length`.

        Earlier calls are forgotten. None where nothing was kept of that time.
        """
        while self._calls:
            before, given = self._calls.pop()
            kept = length - before.text.places
            if kept >= 0:
                self._calls.clear()
                ids = None if given.ids is None else given.ids[:, :kept]
                return before, Unread(given.embeddings[:, :kept], ids) if kept else None
        return None

    def forget(self) -> None:
        """Everything read so far stays."""
        self._calls.clear()
