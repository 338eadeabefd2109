"""Losses of documents, summed by blocks of positions, as a line of samples.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


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
        parts = np.split(losses, range(block - 1, len(losses), block))
        return cls(tuple(math.fsum(part) for part in parts), tuple(map(len, parts)))


class StreamKey(NamedTuple):
    """What is read in one go: some documents, in one condition."""

    stream: int
    """Number of the document, or 0 where all are read through one memory."""
    condition: str


@dataclass(frozen=True)
class StreamRecord:
    """The finished reading of a stream."""

    key: StreamKey
    documents: tuple[BlockLosses, ...]
    seconds: float
    """Wall time."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        return {
            **self.key._asdict(),
            "documents": [{"sums": document.sums, "counts": document.counts} for document in self.documents],
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StreamRecord:
        """The record of a line."""
        documents = [BlockLosses(tuple(one["sums"]), tuple(one["counts"])) for one in values["documents"]]
        key = StreamKey(values["stream"], values["condition"])
        return cls(key, tuple(documents), values["seconds"])
