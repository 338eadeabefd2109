"""Losses of the held-out texts after a stage of adaptation, as a line of samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..block_losses import BlockLosses


class StageKey(NamedTuple):
    """What is measured in one go: all domains, with the memory as some domains have left it."""

    order: int
    """Number of the order of domains."""
    stage: int
    """How many domains were adapted to; at 0 the memory is the initial one."""
    condition: str
    """ADAPTED or MEMORY_OFF."""


@dataclass(frozen=True)
class StageRecord:
    """The finished measurement of a stage."""

    key: StageKey
    domains: tuple[tuple[BlockLosses, ...], ...]
    """Of the held-out documents of every domain, in the given order."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        return {**self.key._asdict(), "domains": [[one.to_json() for one in domain] for domain in self.domains]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StageRecord:
        """The record of a line."""
        key = StageKey(values["order"], values["stage"], values["condition"])
        return cls(key, tuple(tuple(map(BlockLosses.from_json, domain)) for domain in values["domains"]))
