"""What was measured of one model, as a line of samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TrialRecord:
    """One trained and measured model."""

    name: str
    choices: tuple[str, ...]
    seed: int
    iterations: int
    parameters: int
    """Slow weights."""
    cpu_seconds: float
    """CPU time of the training, its start included; without that of a process that was killed."""
    losses: Mapping[str, float]
    """Held-out loss per token with the memory on, by the first position of the part; `all` is every position."""
    without_memory: Mapping[str, float]
    """The same with the memory off; empty for a model without one."""
    gates: Mapping[str, float]
    """Mean of the gate at the last training record, by layer number."""
    recall: Mapping[str, float]
    """Exact match by context length."""

    @property
    def key(self) -> str:
        """Which trial it is."""
        return self.name

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialRecord:
        """The record of a line."""
        return cls(**{**values, "choices": tuple(values["choices"])})
