"""Rows of a batch: which places hold tokens and which padding, and what a cache has read. Ships inside exports.

Padding never reaches a layer: the tokens of every row are moved together before the first layer, and what comes out of
the last is put back to their places. A padded text so gives the logits of the text without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

_MULTIPLIER = 6364136223846793005
"""Base of the fingerprint, a polynomial in it modulo 2**64."""


@dataclass(frozen=True)
class Rows:
    """The tokens of a call. Where nothing is padding, `mask` is None and nothing is moved."""

    counts: tuple[int, ...]
    """Tokens of every row."""
    mask: Tensor | None = None
    """[B, T] bool, False at padding."""
    order: Tensor | None = None
    """[B, T'] the places of the tokens, for T' = max(counts); beyond a row's count, places of padding."""

    @classmethod
    def of(cls, mask: Tensor) -> Rows:
        """Rows of a mask [B, T] that is False at padding."""
        counts = tuple(mask.sum(1).tolist())
        if min(counts) == mask.shape[1]:
            return cls(counts)
        order = torch.argsort((~mask).int(), dim=1, stable=True)[:, : max(counts)]
        return cls(counts, mask, order)

    @property
    def tokens(self) -> int:
        """Tokens of the longest row."""
        return max(self.counts)

    @property
    def equal(self) -> bool:
        """All rows have the same number of tokens."""
        return min(self.counts) == max(self.counts)

    def pack(self, x: Tensor) -> Tensor:
        """The tokens of [B, T, ...] moved together, [B, T', ...]."""
        return x if self.order is None else _at(x, self.order)

    def unpack(self, x: Tensor) -> Tensor:
        """[B, T', ...] put back to the places of the tokens, [B, T, ...]; padding gets what the token before it has."""
        if self.mask is None:
            return x
        if not self.tokens:
            return x.new_zeros(*self.mask.shape, *x.shape[2:])
        return _at(x, (self.mask.long().cumsum(1) - 1).clamp(min=0))

    def part(self, start: int, stop: int) -> tuple[int, ...]:
        """Tokens of every row within [start, stop) of the packed ones."""
        return tuple(min(max(count - start, 0), stop - start) for count in self.counts)


@dataclass(frozen=True)
class ReadText:
    """The text that a cache has read since it was made or its last text was ended."""

    places: int = 0
    """Places of the calls, padding included: how Transformers counts the length of a cache."""
    lengths: tuple[int, ...] = ()
    """Tokens of every row."""
    width: int = 0
    """Keys per row that attention would hold without windows; shorter rows are aligned to the right of them."""
    fingerprint: Tensor | None = field(default=None, compare=False)
    """[B] hash of the tokens; None where a call gave embeddings."""

    def key_mask(self, tokens: int, device: torch.device) -> Tensor | None:
        """[B, width + tokens], False at keys that are no token of the row; None when all are."""
        if not self.lengths or min(self.lengths) == self.width:
            return None
        first = torch.tensor([self.width - length for length in self.lengths], device=device)
        return torch.arange(self.width + tokens, device=device) >= first.unsqueeze(1)

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """[B or 1, tokens] positions of the next tokens."""
        ahead = torch.arange(tokens, device=device).unsqueeze(0)
        if not self.lengths or min(self.lengths) == max(self.lengths):
            return ahead + (self.lengths[0] if self.lengths else 0)
        return ahead + torch.tensor(self.lengths, device=device).unsqueeze(1)

    def after(self, counts: Sequence[int], tokens: int, ids: Tensor | None) -> ReadText:
        """The text after `counts` more tokens per row, given as the first of `ids` [B, tokens]."""
        before = self.lengths or (0,) * len(counts)
        lengths = tuple(old + new for old, new in zip(before, counts, strict=True))
        known = None
        if ids is not None and (self.fingerprint is not None or not self.lengths):
            start = self.fingerprint if self.lengths else None
            known = fingerprint(ids, counts, start)
        return replace(self, lengths=lengths, width=self.width + tokens, fingerprint=known)

    def select(self, rows: Sequence[int]) -> ReadText:
        """Only these rows, in this order."""
        if not self.lengths:
            return self
        known = None if self.fingerprint is None else self.fingerprint[list(rows)]
        return replace(self, lengths=tuple(self.lengths[row] for row in rows), fingerprint=known)


@torch.no_grad()
def fingerprint(ids: Tensor, counts: Sequence[int], start: Tensor | None = None) -> Tensor:
    """[B] hash of the first `counts` of `ids` [B, T], after a text of hash `start`; the same in any cut."""
    tokens = ids.shape[1]
    if tokens == 1 and min(counts) == 1:  # a step of decoding, in few operations
        return ids[:, 0].long() + 1 + (0 if start is None else start.to(ids.device) * _MULTIPLIER)
    powers = torch.full((tokens + 1,), _MULTIPLIER, dtype=torch.long, device=ids.device)
    powers[0] = 1
    powers = powers.cumprod(0)
    number = torch.tensor(counts, device=ids.device)
    exponents = number.unsqueeze(1) - 1 - torch.arange(tokens, device=ids.device)
    terms = (ids.long() + 1) * powers[exponents.clamp(min=0)]
    added = terms.masked_fill(exponents < 0, 0).sum(1)
    return added if start is None else start.to(ids.device) * powers[number] + added


def align_right(x: Tensor, shift: Tensor) -> Tensor:
    """Move the entries of every row of [B, heads, S, d] to the right by `shift` [B]; what falls out is lost."""
    source = torch.arange(x.shape[2], device=x.device) - shift.unsqueeze(1)
    index = source.clamp(min=0)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index)


def _at(x: Tensor, places: Tensor) -> Tensor:
    index = places.view(*places.shape, *(1,) * (x.dim() - 2)).expand(*places.shape, *x.shape[2:])
    return x.gather(1, index)
