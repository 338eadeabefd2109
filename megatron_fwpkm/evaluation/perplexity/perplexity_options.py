"""The options of tools/evaluate_perplexity.py. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...config.tool_options import Metavar
from ..evaluation_options import EvaluationOptions
from .perplexity_settings import Condition, MemoryReset, PerplexitySettings, Reading


@dataclass(frozen=True)
class PerplexityOptions(EvaluationOptions):
    """The options of tools/evaluate_perplexity.py; `settings` makes what is measured of them, and checks it."""

    text: Annotated[tuple[str, ...], Metavar("FILE")] = PerplexitySettings.text
    """text files, plain or gzip; each is one document"""
    text_weights: Annotated[tuple[float, ...], Metavar("WEIGHT")] = PerplexitySettings.text_weights
    """a weight per file of --text: the mean loss is the weighted one over files (default: every token counts alike)"""
    data_path: tuple[str, ...] = PerplexitySettings.data_path
    """instead of --text: dataset prefix, or WEIGHT PREFIX pairs for a blend, as pretrain.py's --data-path"""
    documents: Annotated[int | None, Metavar("N")] = PerplexitySettings.documents
    """read only the first documents of every dataset of --data-path (default: all)"""
    memory: tuple[Condition, ...] = PerplexitySettings.memory
    """modes of the memory to measure; the first is compared with the others"""
    memory_reset: MemoryReset = PerplexitySettings.memory_reset
    """when the memory returns to its initial state: at every document, or never"""
    read_first: Annotated[tuple[str, ...], Metavar("FILE")] = PerplexitySettings.read_first
    """text files that are read into the memory before anything is measured"""
    reading: Reading = PerplexitySettings.reading
    """read documents piece by piece in a cache (stream), or each in one call, exactly as training reads a sequence"""
    length: int | None = PerplexitySettings.length
    """read only so many tokens of every document (default: all)"""
    block: int = PerplexitySettings.block
    """tokens per block; intervals take the means of blocks as independent"""
    segment: int = PerplexitySettings.segment
    """tokens per call of the model; changes speed and memory, not the result"""
    baseline: Annotated[str | None, Metavar("DIR")] = PerplexitySettings.baseline
    """a second model with the same tokenizer to compare with"""

    def settings(self) -> PerplexitySettings:
        """What is measured. Raises ValueError for what cannot be."""
        return PerplexitySettings(
            self.model, self.text, self.memory, self.memory_reset, self.length, self.block, self.segment, self.baseline,
            self.text_weights, self.data_path, self.documents, self.read_first, self.reading,
        )  # fmt: skip
