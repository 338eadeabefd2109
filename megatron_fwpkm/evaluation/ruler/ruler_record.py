"""One finished sample of a RULER task, as a line of samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RulerItem:
    """Which sample it is."""

    task: str
    length: int
    """In tokens, prompt and budget of the answer."""
    index: int
    """From 0."""


@dataclass(frozen=True)
class RulerRecord:
    """A finished sample."""

    item: RulerItem
    prompt_tokens: int
    """Tokens that the model read before its answer, BOS included; nothing is ever cut off."""
    bos: bool
    """Whether BOS is one of them."""
    over_length: int
    """Tokens of prompt and budget beyond the length: 1 where BOS, which RULER does not count, has no room."""
    answers: tuple[str, ...]
    """The right ones."""
    other_answers: tuple[str, ...]
    """Those of the next sample, for the control."""
    predictions: Mapping[str, str]
    """By condition, the text that the model generated, as it is."""
    generated: Mapping[str, int]
    """By condition, the number of its tokens."""
    seconds: float
    """Wall time of all conditions."""

    @property
    def key(self) -> RulerItem:
        """Which sample it is."""
        return self.item

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        values = asdict(self)
        return values.pop("item") | values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RulerRecord:
        """The record of a line."""
        rest = dict(values)
        item = RulerItem(*(rest.pop(name) for name in ("task", "length", "index")))
        for name in ("answers", "other_answers"):
            rest[name] = tuple(rest[name])
        return cls(item, **rest)
