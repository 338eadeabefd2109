"""Losses and gates of documents, as a line of samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..block_losses import BlockLosses


class StreamKey(NamedTuple):
    """What is read in one go: some documents, in one condition."""

    stream: int
    """Number of the group of documents, or 0 where all are read through one memory."""
    condition: str


@dataclass(frozen=True)
class DocumentRecord:
    """What was measured of one document."""

    losses: BlockLosses
    gates: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    """By layer index from 0, sums over the tokens that predict, by the same blocks."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        return {**self.losses.to_json(), "gates": {str(layer): sums for layer, sums in self.gates.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DocumentRecord:
        """The document of a record."""
        gates = {int(layer): tuple(sums) for layer, sums in values["gates"].items()}
        return cls(BlockLosses.from_json(values), gates)


@dataclass(frozen=True)
class StreamRecord:
    """The finished reading of a stream."""

    key: StreamKey
    documents: tuple[DocumentRecord, ...]
    seconds: float
    """Wall time."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        documents = [document.to_json() for document in self.documents]
        return {**self.key._asdict(), "documents": documents, "seconds": self.seconds}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StreamRecord:
        """The record of a line."""
        documents = tuple(map(DocumentRecord.from_json, values["documents"]))
        return cls(StreamKey(values["stream"], values["condition"]), documents, values["seconds"])
