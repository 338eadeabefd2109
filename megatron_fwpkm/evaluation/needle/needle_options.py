"""The options of tools/evaluate_needle.py. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...config import NeedleConfig
from ...config.tool_options import MayBeEmpty, Metavar
from ..evaluation_options import EvaluationOptions
from .settings import (
    NUMBER_TEMPLATE,
    Chunk,
    Control,
    DistractorKind,
    LengthUnit,
    MemoryReset,
    NeedleKind,
    NeedleSettings,
    Protocol,
)


@dataclass(frozen=True)
class NeedleOptions(EvaluationOptions):
    """The options of tools/evaluate_needle.py; `settings` makes what is measured of them, and checks it."""

    haystack: Annotated[tuple[str, ...], Metavar("FILE")]
    """text files to hide facts in, plain or gzip"""
    lengths: tuple[int, ...]
    """context lengths, facts included"""
    length_unit: LengthUnit = NeedleSettings.length_unit
    """what --lengths count"""
    depths: int = NeedleSettings.depths
    """depths of the asked needle, from 0 to 100 %"""
    needles: int = NeedleSettings.needles
    """facts per context; the model is asked for one"""
    distractors: int = NeedleSettings.distractors
    """further facts that are easily taken for the asked one"""
    distractor_kind: DistractorKind = NeedleSettings.distractor_kind
    """they share all of its key but the end (same-key), or its value (same-value)"""
    samples: tuple[int, ...] = NeedleSettings.samples
    """contexts per length, spread over the depths; one number for all lengths or one per length"""
    seed: int = NeedleSettings.seed
    """seed of the samples"""
    protocol: Protocol = NeedleSettings.protocol
    """the paper's (official), freeze the memory for the question (ask-after-write), or keep writing (streaming)"""
    reads: tuple[int, ...] = NeedleSettings.reads
    """how many times a context is read before the answer; all are measured in one pass"""
    chunk: Chunk = NeedleSettings.chunk
    """write after every chunk of the model's size (training), or once per input (input)"""
    memory_reset: MemoryReset = NeedleSettings.memory_reset
    """put the initial memory back before every context (sample), at every file and length (file), or never"""
    segment: int = NeedleSettings.segment
    """tokens of a context that one call reads, which bounds the process's memory"""
    batch_size: int = NeedleSettings.batch_size
    """contexts of one length that are read together, for a GPU"""
    controls: Annotated[tuple[Control, ...], MayBeEmpty()] = NeedleSettings.controls
    """memory-off and frozen write nothing (initial, carried memory); never-shown asks for a fact that is not there"""
    needle_kind: NeedleKind = NeedleSettings.needle_kind
    """what keys and values are: words, digits (keys of 4, values of 6 or 7), or UUIDs"""
    needle_template: str | None = None
    """sentence that states a fact, with {key} and {value} (default: that of training for words, else the paper's)"""
    needle_key_words: int = NeedleConfig.key_words
    """number of words in a key"""
    needle_value_words: int = NeedleConfig.value_words
    """number of words in a value"""

    def settings(self) -> NeedleSettings:
        """What is measured."""
        usual = NeedleConfig.template if self.needle_kind == "words" else NUMBER_TEMPLATE
        needle = NeedleConfig(
            template=usual if self.needle_template is None else self.needle_template,
            key_words=self.needle_key_words, value_words=self.needle_value_words,
        )  # fmt: skip
        return NeedleSettings(
            self.model, self.haystack, self.lengths, self.depths, self.samples, self.needles, self.protocol,
            tuple(dict.fromkeys(self.controls)), needle, self.seed, self.reads, self.chunk, self.memory_reset,
            self.length_unit, self.needle_kind, self.distractors, self.distractor_kind, self.segment, self.batch_size,
        )  # fmt: skip
