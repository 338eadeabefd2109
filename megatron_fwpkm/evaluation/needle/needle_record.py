"""One finished sample: what was asked and answered, as a line of samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .recall import Answer
from .samples import Cell


@dataclass(frozen=True)
class NeedleRecord:
    """One finished sample."""

    cell: Cell
    asked_start: int
    """Position of the asked fact."""
    in_window: bool
    """Whether attention alone could reach it."""
    read_seconds: float
    """Wall time of reading the context."""
    answers: Mapping[str, Answer]
    """By condition."""
    texts: Mapping[str, str]
    """Question, value and given answers as text, for people."""

    @property
    def key(self) -> Cell:
        """Which sample it is."""
        return self.cell

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        return {
            "length": self.cell.length,
            "depth": self.cell.depth,
            "index": self.cell.index,
            "asked_start": self.asked_start,
            "in_window": self.in_window,
            "read_seconds": self.read_seconds,
            "answers": {
                name: {"expected": answer.expected, "given": answer.given, "exact": answer.exact}
                for name, answer in self.answers.items()
            },
            "texts": dict(self.texts),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NeedleRecord:
        """The record of a line."""
        answers = {
            name: Answer(tuple(answer["expected"]), tuple(answer["given"]))
            for name, answer in values["answers"].items()
        }
        cell = Cell(values["length"], values["depth"], values["index"])
        return cls(cell, values["asked_start"], values["in_window"], values["read_seconds"], answers, values["texts"])
