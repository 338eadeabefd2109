"""How a model reads a context and answers a question: the protocols, the controls and the causality check.

Works on the streaming interface of `megatron_fwpkm.hf` alone: `model.new_cache()`, a call with a cache, `memory_mode`,
`cache.flush_memory()` and `cache.clone()`. Every context gets a cache of its own, so nothing survives a sample.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...data.training.needles import EncodedFact
from ...hf.cache import FwPKMCache
from ...hf.modeling_fwpkm import FwPKMForCausalLM
from .recall import Answer
from .samples import NeedleSample
from .settings import MEMORY_ON, NeedleSettings

READING = "one context a call, each in a memory of its own"
"""How contexts and memories belong together, for the record of an evaluation."""


@dataclass(frozen=True)
class SampleResult:
    """Answers of one sample, by condition, and how long its context took to read with the memory on."""

    answers: dict[str, Answer]
    read_seconds: float


def attention_reach(model: FwPKMForCausalLM) -> int | None:
    """How many tokens back information can come by attention alone, through all layers; None for the whole text."""
    reach = 0
    for layer in model.new_cache().layers:
        window: int | None = getattr(layer, "sliding_window", None)
        if window is None:
            return None
        reach += window - 1
    return reach


class NeedleReader:
    """Asks one model about samples, as the settings say."""

    def __init__(self, model: FwPKMForCausalLM, settings: NeedleSettings, vocab_size: int) -> None:
        """`vocab_size`: the tokenizer's; ids beyond it are padding of the embedding and never an answer."""
        self.model = model
        self.settings = settings
        self.vocab_size = vocab_size
        self.reach = attention_reach(model)
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def ask(self, sample: NeedleSample) -> SampleResult:
        """Read the context, then ask for the sample's fact under every condition."""
        begin = time.perf_counter()
        past = self._read(sample.context, "on")
        if self.settings.protocol == "ask-after-write":
            past.flush_memory()
        seconds = time.perf_counter() - begin
        mode = "on" if self.settings.protocol == "streaming" else "frozen"
        answers = {MEMORY_ON: self._answer(past, sample.asked, mode)}
        if "never-shown" in self.settings.controls:
            answers["never-shown"] = self._answer(past, sample.never_shown, mode)
        if "memory-off" in self.settings.controls:
            answers["memory-off"] = self._answer(self._read(self._visible(sample), "off"), sample.asked, "off")
        return SampleResult(answers, seconds)

    def _visible(self, sample: NeedleSample) -> np.ndarray:
        """The end of the context that can matter without a memory: rotary attention depends on distances only."""
        return sample.context if self.reach is None else sample.context[-self.reach - 1 :]

    def _read(self, tokens: np.ndarray, mode: str) -> FwPKMCache:
        cache = self.model.new_cache()
        self._call(tokens, cache, mode)
        return cache

    def _answer(self, past: FwPKMCache, fact: EncodedFact, mode: str) -> Answer:
        """Greedy continuation of the question, as long as the value; `past` stays as it is."""
        cache, given = past.clone(), list[int]()
        logits = self._call(fact.question, cache, mode)
        while True:
            given.append(int(logits[: self.vocab_size].argmax()))
            if len(given) == len(fact.answer_tokens):
                return Answer(tuple(int(token) for token in fact.answer_tokens), tuple(given))
            logits = self._call(given[-1:], cache, mode)

    def _call(self, tokens: np.ndarray | Sequence[int], cache: FwPKMCache, mode: str) -> torch.Tensor:
        """Logits [vocab] after the last token."""
        self.model.memory_mode = mode
        row = torch.as_tensor(np.asarray(tokens, dtype=np.int64), device=self.device).unsqueeze(0)
        return self.model(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]


@dataclass(frozen=True)
class CausalityCheck:
    """Whether a changed token left everything before it alone."""

    changed: int
    """Position of the changed token."""
    before_identical: bool
    """Logits of all earlier positions are the same bit for bit."""
    after_differs: bool
    """Some later logits differ, so the check could have failed."""

    @property
    def passed(self) -> bool:
        """Whether nothing before the token changed, and something after it did."""
        return self.before_identical and self.after_differs


@torch.inference_mode()
def check_causality(model: FwPKMForCausalLM, tokens: np.ndarray, vocab_size: int) -> CausalityCheck:
    """Read `tokens` [N] twice, the second time with the middle token changed, each time through a memory of its own."""
    position = len(tokens) // 2
    changed = tokens.copy()
    changed[position] = (changed[position] + 1) % vocab_size
    model.memory_mode = "on"
    rows = [torch.as_tensor(row, device=next(model.parameters()).device).unsqueeze(0) for row in (tokens, changed)]
    logits = [model(row, past_key_values=model.new_cache(), use_cache=True).logits[0] for row in rows]
    return CausalityCheck(
        position,
        torch.equal(logits[0][:position], logits[1][:position]),
        not torch.equal(logits[0][position + 1 :], logits[1][position + 1 :]),
    )
