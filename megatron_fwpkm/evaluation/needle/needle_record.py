"""One finished sample: what was asked and answered, as a line of samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .recall import Answer
from .samples import Cell

_PLAIN = ("asked_start", "in_window", "bos", "truncated", "tokens", "read_seconds")


@dataclass(frozen=True)
class NeedleRecord:
    """One finished sample."""

    cell: Cell
    asked_start: int
    """Position of the asked fact."""
    in_window: bool
    """Whether attention alone could reach it."""
    bos: int
    """BOS tokens in the context."""
    truncated: int
    """Tokens of the context that the model has not read; not 0 only where something is wrong."""
    tokens: int
    """Tokens of the context."""
    read_seconds: float
    """Wall time of reading the context once."""
    answers: tuple[Answer, ...]
    """One for each condition and number of reads."""
    texts: Mapping[str, str]
    """Question and value as text, and the given answers by `condition` and reads, for people."""

    @property
    def key(self) -> Cell:
        """Which sample it is."""
        return self.cell

    def answer(self, condition: str, reads: int = 1) -> Answer:
        """The answer under a condition. Raises KeyError where it was not asked."""
        for answer in self.answers:
            if (answer.condition, answer.reads) == (condition, reads):
                return answer
        raise KeyError(f"no answer under {condition} after {reads} reads")

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        return {
            **asdict(self.cell),
            **{name: getattr(self, name) for name in _PLAIN},
            "answers": [asdict(answer) | {"exact": answer.exact} for answer in self.answers],
            "texts": dict(self.texts),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NeedleRecord:
        """The record of a line."""
        answers = tuple(
            Answer(
                given["condition"], given["reads"], tuple(given["expected"]), tuple(given["given"]), given["rank"],
                given["candidates"],
            )
            for given in values["answers"]
        )  # fmt: skip
        cell = Cell(values["length"], values["depth"], values["index"])
        return cls(cell=cell, **{name: values[name] for name in _PLAIN}, answers=answers, texts=values["texts"])
