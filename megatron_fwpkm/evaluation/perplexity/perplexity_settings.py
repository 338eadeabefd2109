"""What a perplexity evaluation measures. Free of torch, so that the tool's help is instant."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Condition = Literal["on", "off"]
MemoryReset = Literal["document", "never"]
NO_MEMORY = "no memory"
"""Name of the measured condition where the model has no fast-weight memory."""
BASELINE = "baseline"
"""Name of the condition of a second model."""

CONDITION_MEANINGS = {
    "on": "The memory is read and written, as in training.",
    "off": "The memory is never written, so that only the initial one is read.",
    NO_MEMORY: "The model has no fast-weight memory.",
    BASELINE: "Another model reads the same tokens.",
}
RESET_MEANINGS = {
    "document": "Every document starts with the initial memory.",
    "never": "The memory is carried over from document to document; attention sees one document only.",
}


@dataclass(frozen=True)
class PerplexitySettings:
    """One perplexity evaluation."""

    model: str
    """Folder of an export, a checkpoint or any causal language model of Transformers."""
    text: tuple[str, ...]
    """Text files, plain or gzip; each is a document."""
    memory: tuple[Condition, ...] = ("on", "off")
    """Modes of the memory; the first is compared with the others."""
    memory_reset: MemoryReset = "document"
    """Key of RESET_MEANINGS."""
    length: int | None = None
    """Tokens of a document that are read; None for all."""
    block: int = 512
    """Tokens that stand together for one number of an interval, and the finest steps of positions."""
    segment: int = 1024
    """Tokens per call of the model."""
    baseline: str | None = None
    """Folder of a second model with the same tokenizer."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be measured."""
        if not self.memory:
            raise ValueError("--memory is empty; choose one or both of on, off")
        for mode in self.memory:
            if mode not in get_args(Condition):
                raise ValueError(f"--memory {mode!r} is not known; choose from {', '.join(get_args(Condition))}")
        if len(set(self.memory)) != len(self.memory):
            raise ValueError(f"--memory {' '.join(self.memory)} contains the same mode twice")
        if self.memory_reset not in RESET_MEANINGS:
            raise ValueError(f"--memory-reset {self.memory_reset!r} is not known; choose from document, never")
        for flag, number, least in (("--length", self.length, 2), ("--block", self.block, 1)):
            if number is not None and number < least:
                raise ValueError(f"{flag} {number} must be at least {least}")
        if self.segment < 1:
            raise ValueError(f"--segment {self.segment} must be at least 1")

    def conditions(self, has_memory: bool) -> tuple[str, ...]:
        """What every document is read with: the measured condition, then what it is compared with."""
        measured = self.memory if has_memory else (NO_MEMORY,)
        return (*measured, *([BASELINE] if self.baseline is not None else []))

    def decides_a_record(self) -> dict[str, Any]:
        """Settings that change what one record holds."""
        values = asdict(self)
        return {name: values[name] for name in ("memory_reset", "length", "block")}
