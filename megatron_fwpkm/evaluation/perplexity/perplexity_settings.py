"""What a perplexity evaluation measures. Free of torch, so that the tool's help is instant."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Condition = Literal["on", "off", "frozen"]
MemoryReset = Literal["document", "never"]
Reading = Literal["stream", "training"]
NO_MEMORY = "no memory"
"""Name of the measured condition where the model has no fast-weight memory."""
BASELINE = "baseline"
"""Name of the condition of a second model."""

CONDITION_MEANINGS = {
    "on": "The memory is read and written, as in training.",
    "off": "The memory is never written, so that only the initial one is read.",
    "frozen": "The memory is read as it was when the document began, with what earlier texts have left in it; the "
    "document itself is not written while it is measured.",
    NO_MEMORY: "The model has no fast-weight memory.",
    BASELINE: "Another model reads the same tokens.",
}
RESET_MEANINGS = {
    "document": "Every document starts with the initial memory, or with the one that the texts of --read-first have "
    "left.",
    "never": "The memory is carried over from document to document; attention sees one document only.",
}
READING_MEANINGS = {
    "stream": "Documents are read piece by piece in a cache, which gives the same logits however they are cut.",
    "training": "Every document is read in one call without a cache, exactly as training reads a sequence: a chunk of "
    "the memory is written without the target of its last token, before the next token is read.",
}


@dataclass(frozen=True)
class PerplexitySettings:
    """One perplexity evaluation."""

    model: str
    """Folder of an export, a checkpoint or any causal language model of Transformers."""
    text: tuple[str, ...] = ()
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
    text_weights: tuple[float, ...] = ()
    """Of the text files in the mean over all of them; empty where every token counts alike."""
    data_path: tuple[str, ...] = ()
    """Prefix of a dataset of Megatron, or weights and prefixes of a blend, instead of `text`."""
    documents: int | None = None
    """Documents of every dataset that are read, its first ones; None for all."""
    read_first: tuple[str, ...] = ()
    """Text files that are read into the memory before anything is measured."""
    reading: Reading = "stream"
    """Key of READING_MEANINGS."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be measured."""
        if bool(self.text) == bool(self.data_path):
            raise ValueError("give either --text or --data-path")
        if not self.memory:
            raise ValueError("--memory is empty; choose some of on, off, frozen")
        for mode in self.memory:
            if mode not in get_args(Condition):
                raise ValueError(f"--memory {mode!r} is not known; choose from {', '.join(get_args(Condition))}")
        if len(set(self.memory)) != len(self.memory):
            raise ValueError(f"--memory {' '.join(self.memory)} contains the same mode twice")
        self._check_reading()
        self._check_sources()
        for flag, number, least in (
            ("--length", self.length, 2), ("--block", self.block, 1), ("--segment", self.segment, 1),
            ("--documents", self.documents, 1),
        ):  # fmt: skip
            if number is not None and number < least:
                raise ValueError(f"{flag} {number} must be at least {least}")

    def _check_reading(self) -> None:
        if self.memory_reset not in RESET_MEANINGS:
            raise ValueError(f"--memory-reset {self.memory_reset!r} is not known; choose from document, never")
        if "frozen" in self.memory and self.memory_reset == "document" and not self.read_first:
            raise ValueError(
                "--memory frozen would read the initial memory, as off does: give texts that are written before with "
                "--read-first, or carry the memory from document to document with --memory-reset never"
            )
        if self.reading not in READING_MEANINGS:
            raise ValueError(f"--reading {self.reading!r} is not known; choose from stream, training")
        if self.reading == "training" and (self.memory_reset == "never" or self.read_first):
            raise ValueError("--reading training begins every document with the initial memory: --memory-reset never "
                             "and --read-first are of --reading stream")  # fmt: skip

    def _check_sources(self) -> None:
        if self.text_weights:
            shown = f"--text-weights {' '.join(map(str, self.text_weights))}"
            if len(self.text_weights) != len(self.text):
                raise ValueError(f"{shown}: {len(self.text)} files of --text need a weight each")
            if not all(0 < weight < float("inf") for weight in self.text_weights):
                raise ValueError(f"{shown}: every weight must be a positive number")
            if len(set(self.text)) < len(self.text):
                raise ValueError(f"{shown}: a file of --text is named twice; add up its weights")
        if self.documents is not None and not self.data_path:
            raise ValueError("--documents is of --data-path alone: a file of --text is one document")

    def conditions(self, has_memory: bool) -> tuple[str, ...]:
        """What every document is read with: the measured condition, then what it is compared with."""
        measured = self.memory if has_memory else (NO_MEMORY,)
        return (*measured, *([BASELINE] if self.baseline is not None else []))

    def decides_a_record(self) -> dict[str, Any]:
        """Settings that change what one record holds; texts are told apart by their tokens."""
        values = asdict(self)
        return {name: values[name] for name in ("memory_reset", "length", "block", "reading")}
