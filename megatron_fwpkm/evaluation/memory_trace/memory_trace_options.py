"""The options of tools/inspect_memory.py. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...config import NeedleConfig
from ...config.tool_options import Metavar
from ..evaluation_options import EvaluationOptions
from .memory_trace_settings import MemoryTraceSettings, Mode


@dataclass(frozen=True)
class MemoryTraceOptions(EvaluationOptions):
    """The options of tools/inspect_memory.py; `settings` makes what is traced of them, and checks it."""

    model: Annotated[str, Metavar("DIR")]
    """exported folder or checkpoint with a product key memory"""
    haystack: Annotated[tuple[str, ...], Metavar("FILE")] = ()
    """text files to hide facts in, plain or gzip; the samples are those of tools/evaluate_needle.py"""
    length: int = MemoryTraceSettings.length
    """context length in tokens"""
    depth: Annotated[float | None, Metavar("FRACTION")] = None
    """depth of the asked needle from 0 to 1 (default: the --depths in turn, by the number of the sample)"""
    depths: int = MemoryTraceSettings.depths
    """depths from 0 to 1 that are taken in turn"""
    index: int = MemoryTraceSettings.index
    """number of the sample that is shown; the first of --samples"""
    samples: int = MemoryTraceSettings.samples
    """number of samples that are counted together"""
    needles: int = MemoryTraceSettings.needles
    """facts per context; the model is asked for one"""
    seed: int = MemoryTraceSettings.seed
    """seed of the samples"""
    needle_template: str = NeedleConfig.template
    """sentence that states a fact; contains {key} directly before {value}"""
    needle_key_words: int = NeedleConfig.key_words
    """number of words in a key"""
    needle_value_words: int = NeedleConfig.value_words
    """number of words in a value"""
    text: Annotated[str | None, Metavar("FILE")] = None
    """text file to read instead of a needle sample, plain or gzip"""
    prompt: Annotated[str | None, Metavar("TEXT")] = None
    """what to continue behind --text"""
    max_new_tokens: int = MemoryTraceSettings.max_new_tokens
    """longest answer to --prompt"""
    mode: Mode = MemoryTraceSettings.mode
    """ask a frozen memory (ask-after-write), one that is still written (streaming), or an unwritten one (memory-off)"""
    reads: int = MemoryTraceSettings.reads
    """number of times the context is read before the question"""

    def settings(self) -> MemoryTraceSettings:
        """What is traced."""
        needle = NeedleConfig(
            template=self.needle_template, key_words=self.needle_key_words, value_words=self.needle_value_words
        )
        return MemoryTraceSettings(
            self.model, self.haystack, self.length, self.depth, self.depths, self.index, self.samples, self.needles,
            needle, self.seed, self.text, self.prompt, self.max_new_tokens, self.mode, self.reads,
        )  # fmt: skip
