"""Losses of a text that a model reads, summed by blocks of positions, and what they say with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .confidence import Estimate, ratio_interval
from .text_model import MemoryMode, TextModel


@dataclass(frozen=True)
class BlockLosses:
    """Losses of one document: block i holds the predictions at positions i*block to (i+1)*block - 1."""

    sums: tuple[float, ...]
    """In nats."""
    counts: tuple[int, ...]
    """Predicted tokens."""

    @classmethod
    def of(cls, losses: np.ndarray, block: int) -> BlockLosses:
        """From the losses [N] of all tokens but the first; the first of them is at position 1 of its document."""
        return cls(*sums_by_block(losses, block))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        return {"sums": self.sums, "counts": self.counts}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BlockLosses:
        """The losses of a record."""
        return cls(tuple(values["sums"]), tuple(values["counts"]))


def sums_by_block(numbers: np.ndarray, block: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Sums of numbers [N] of the tokens from position 1 on, by blocks of positions, and how many each has."""
    parts = np.split(numbers, range(block - 1, len(numbers), block))
    return tuple(math.fsum(part) for part in parts), tuple(map(len, parts))


@torch.inference_mode()
def document_losses(model: TextModel, tokens: np.ndarray, cache: Any, mode: MemoryMode, segment: int) -> np.ndarray:
    """Read a document to its end and return the cross entropies, float64 [N - 1], of all its tokens but the first.

    Args:
        model: any.
        tokens: [N].
        cache: of this model, at the beginning of a text; changed. None to read the document in one call without a
            cache, as training reads a sequence.
        mode: of the memory.
        segment: tokens per call with a cache; a model whose memory depends on how a text is cut reads it in one.
    """
    if cache is None:
        return _cross_entropies(model.read_whole(tokens, mode), tokens[1:]).double().cpu().numpy()
    return torch.cat(list(_segment_losses(model, tokens, cache, mode, segment))).double().cpu().numpy()


def _segment_losses(
    model: TextModel, tokens: np.ndarray, cache: Any, mode: MemoryMode, segment: int
) -> Iterator[torch.Tensor]:
    """The cross entropies segment by segment.

    The last logits of a segment predict the first token of the next one: no token is left out at a border. The last
    token is read, too, for a memory that goes on.
    """
    segment = model.call_size(segment)
    for begin in range(0, len(tokens), segment):
        logits = model.read(tokens[begin : begin + segment], cache, mode, last_only=False)
        yield _cross_entropies(logits, tokens[begin + 1 : begin + 1 + segment])


def _cross_entropies(logits: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
    """Of the first logits [N or more, vocab] and targets [N]."""
    logits = logits[: len(targets)]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, torch.as_tensor(targets, device=logits.device), reduction="none")


def losses_estimate(
    documents: Sequence[BlockLosses],
    minus: Sequence[BlockLosses] | None = None,
    *,
    weights: Sequence[float] | None = None,
    blocks: slice = slice(None),
) -> tuple[int, int, Estimate]:
    """Mean loss per token of some documents, or its difference to other losses of the same tokens.

    Args:
        documents: at least one with a predicted token.
        minus: the losses that are subtracted, document by document; None for no difference.
        weights: of a token, by document; None where all count alike.
        blocks: those of every document that are taken.

    Returns:
        Predicted tokens, their blocks, and the mean with an interval that takes the blocks as independent.
    """
    sums, counts, tokens = [], [], 0
    for number, one in enumerate(documents):
        taken = (0.0,) * len(one.sums)
        if minus is not None:
            assert minus[number].counts == one.counts, "the losses are of different tokens"
            taken = minus[number].sums
        weight = 1.0 if weights is None else weights[number]
        for ours, theirs, count in list(zip(one.sums, taken, one.counts, strict=True))[blocks]:
            if count:
                sums.append(weight * (ours - theirs))
                counts.append(weight * count)
                tokens += count
    return tokens, len(counts), ratio_interval(sums, counts)


def interval_text(loss: Estimate, sign: str = "") -> str:
    """A mean and its interval, if there is one; with the sign + also positive numbers have one."""
    if math.isnan(loss.low):
        return f"{loss.mean:{sign}.4f}"
    return f"{loss.mean:{sign}.4f} [{loss.low:{sign}.4f}, {loss.high:{sign}.4f}]"
