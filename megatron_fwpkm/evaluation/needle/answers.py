"""How a model reads a context and answers a question: the protocols and the controls.

Every context gets a cache of its own, so nothing survives a sample.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.training.needles import EncodedFact
from ..text_model import MemoryMode, TextModel
from .recall import Answer
from .samples import NeedleSample
from .settings import NeedleSettings

READING = "one context per call, each with its own memory"
"""Which memory every context uses, for the record of an evaluation."""
NOTHING_TO_WRITE = "none: the model has no fast-weight memory"
"""The same for a model without one."""


@dataclass(frozen=True)
class SampleResult:
    """Answers of one sample, by condition, and how long its context took to read with the memory on."""

    answers: dict[str, Answer]
    read_seconds: float


class NeedleReader:
    """Asks one model about samples, as the settings say."""

    def __init__(self, model: TextModel, settings: NeedleSettings, vocab_size: int) -> None:
        """`vocab_size`: the tokenizer's; ids beyond it are padding of the embedding and never an answer."""
        self.model = model
        self.settings = settings
        self.vocab_size = vocab_size
        self.reach = model.attention_reach()
        self.conditions = settings.conditions(model.has_memory)

    @torch.inference_mode()
    def ask(self, sample: NeedleSample) -> SampleResult:
        """Read the context, then ask for the sample's fact under every condition."""
        begin = time.perf_counter()
        past = self._read(sample.context, "on")
        if self.settings.protocol == "ask-after-write":
            self.model.write_waiting(past)
        seconds = time.perf_counter() - begin
        writes_go_on = self.settings.protocol == "streaming" or not self.model.has_memory
        mode: MemoryMode = "on" if writes_go_on else "frozen"
        answers = {self.conditions[0]: self._answer(past, sample.asked, mode)}
        if "never-shown" in self.conditions:
            answers["never-shown"] = self._answer(past, sample.never_shown, mode)
        if "memory-off" in self.conditions:
            answers["memory-off"] = self._answer(self._read(self._visible(sample), "off"), sample.asked, "off")
        return SampleResult(answers, seconds)

    def _visible(self, sample: NeedleSample) -> np.ndarray:
        """The end of the context that can matter without a memory: rotary attention depends on distances only."""
        return sample.context if self.reach is None else sample.context[-self.reach - 1 :]

    def _read(self, tokens: np.ndarray, mode: MemoryMode) -> Any:
        cache = self.model.new_cache()
        self.model.read(tokens, cache, mode)
        return cache

    def _answer(self, past: Any, fact: EncodedFact, mode: MemoryMode) -> Answer:
        """Greedy continuation of the question, as long as the value; `past` stays as it is."""
        cache, given = self.model.clone(past), list[int]()
        logits = self.model.read(fact.question, cache, mode)
        while True:
            given.append(int(logits[: self.vocab_size].argmax()))
            if len(given) == len(fact.answer_tokens):
                return Answer(tuple(int(token) for token in fact.answer_tokens), tuple(given))
            logits = self.model.read(given[-1:], cache, mode)
