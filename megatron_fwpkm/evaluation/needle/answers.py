"""How a model reads a context and answers a question: the protocols and the controls.

A context gets a cache of its own, or the one that the context before has left. All numbers of reads are measured in one
pass: after each that is wanted, questions are asked of copies of the cache, and the context is read once more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.training.needles import EncodedFact
from ..text_model import MemoryMode, TextModel
from .recall import Answer
from .samples import NeedleSample
from .settings import NeedleSettings

NOTHING_TO_WRITE = "none: the model has no fast-weight memory"
"""What is told of the memory of a model without one."""
WHOLE_INPUT = 2**40
"""A chunk size that no input reaches: what waits is written when the input ends."""


@dataclass(frozen=True)
class SampleResult:
    """What one sample gave."""

    answers: tuple[Answer, ...]
    """By condition and number of reads."""
    read_seconds: float
    """How long its context took to read once with the memory on."""
    truncated: int
    """Tokens of the context that the model has not read."""
    past: Any
    """The cache that goes on to the next context, where the memory is carried."""


@dataclass(frozen=True)
class _Asked:
    """A question that was read, before the answer."""

    past: Any
    logits: torch.Tensor
    mode: MemoryMode


class NeedleReader:
    """Asks one model about samples, as the settings say."""

    def __init__(self, model: TextModel, settings: NeedleSettings, vocab_size: int) -> None:
        """`vocab_size`: the tokenizer's; ids beyond it are padding of the embedding and never an answer."""
        self.model = model
        self.settings = settings
        self.vocab_size = vocab_size
        self.reach = model.attention_reach()
        self.conditions = settings.conditions(model.has_memory)
        self.reads = settings.measured_reads(model.has_memory)
        self._chunk = WHOLE_INPUT if settings.chunk == "input" else None
        self._segment = model.call_size(settings.segment)

    def ask(self, sample: NeedleSample, past: Any = None) -> SampleResult:
        """Read the context, then ask for the sample's fact under every condition and after every number of reads.

        Args:
            sample: what to ask.
            past: the cache that the context before has left; None for the initial memory. It is used up.
        """
        return self.ask_together([sample], past)[0]

    @torch.inference_mode()
    def ask_together(self, samples: Sequence[NeedleSample], past: Any = None) -> list[SampleResult]:
        """`ask` for samples whose contexts have one length and are read together, each with a memory of its own.

        Args:
            samples: what to ask; several only of a model with a memory.
            past: as there, for one sample.
        """
        cache = self.model.new_cache(self._chunk) if past is None else self.model.next_text(past)
        answers = [self._controls(sample, cache) for sample in samples]
        contexts = np.stack([sample.context for sample in samples])
        seconds, kept = 0.0, None
        for number in range(1, max(self.reads) + 1):
            if number > 1 and self.settings.protocol != "streaming":
                cache = self.model.next_text(cache)
            before = self.model.tokens_read(cache)
            self.model.finish()
            start = time.perf_counter()
            self._read(contexts, cache, "on")
            if self.settings.protocol == "ask-after-write":
                self.model.write_waiting(cache)
            self.model.finish()
            seconds += time.perf_counter() - start
            truncated = self._truncated(contexts, cache, before)
            if number in self.reads:
                parts = [cache] if len(samples) == 1 else self.model.parts(cache)
                for sample, part, given in zip(samples, parts, answers, strict=True):
                    asked = self._question(part, sample.asked)
                    given.append(self._answer(sample, sample.asked, asked, self.conditions[0], number))
                    kept = asked.past
                    if "never-shown" in self.conditions:
                        other = self._question(part, sample.never_shown)
                        given.append(self._answer(sample, sample.never_shown, other, "never-shown", number))
        seconds /= max(self.reads) * len(samples)
        return [SampleResult(self._in_order(given), seconds, truncated, kept) for given in answers]

    def _in_order(self, answers: Sequence[Answer]) -> tuple[Answer, ...]:
        """The measured condition first, then the controls."""
        return tuple(sorted(answers, key=lambda answer: (self.conditions.index(answer.condition), answer.reads)))

    def _controls(self, sample: NeedleSample, begun: Any) -> list[Answer]:
        """The answers where the context is not written; `begun` is the cache that the context starts from."""
        caches = {"memory-off": self.model.new_cache, "frozen": lambda: self.model.clone(begun)}
        return [
            self._unwritten(sample, condition, cache()) for condition, cache in caches.items()
            if condition in self.conditions
        ]  # fmt: skip

    def visible(self, sample: NeedleSample) -> np.ndarray:
        """The end of the context that can matter without writes: rotary attention depends on distances only."""
        return sample.context if self.reach is None else sample.context[-self.reach - 1 :]

    def _unwritten(self, sample: NeedleSample, condition: str, cache: Any) -> Answer:
        """The answer where the context is not written into the memory."""
        mode: MemoryMode = "off" if condition == "memory-off" else "frozen"
        self._read(self.visible(sample)[None], cache, mode)
        asked = _Asked(cache, self.model.read(sample.asked.question, cache, mode), mode)
        return self._answer(sample, sample.asked, asked, condition, 1)

    def _read(self, rows: np.ndarray, cache: Any, mode: MemoryMode) -> None:
        """Read contexts [B, N] in calls of a segment, so that no more than a segment is worked on at once."""
        for start in range(0, rows.shape[1], self._segment):
            self.model.read_rows(rows[:, start : start + self._segment], cache, mode)

    def _truncated(self, rows: np.ndarray, cache: Any, before: int | None) -> int:
        after = self.model.tokens_read(cache)
        return 0 if before is None or after is None else rows.shape[1] - (after - before)

    def _question(self, past: Any, fact: EncodedFact) -> _Asked:
        """Read a question in a copy of `past`, as the protocol says."""
        protocol, cache = self.settings.protocol, self.model.clone(past)
        frozen = protocol == "ask-after-write" and self.model.has_memory
        mode: MemoryMode = "frozen" if frozen else "on"
        logits = self.model.read(fact.question, cache, mode)
        if protocol == "official":  # the input has ended: its last chunk is written before the answer goes on
            self.model.write_waiting(cache)
        return _Asked(cache, logits, mode)

    def _answer(
        self, sample: NeedleSample, fact: EncodedFact, asked: _Asked, condition: str, reads: int
    ) -> Answer:  # fmt: skip
        """Greedy continuation of the question, as long as the value, which goes on in `asked.past`; and the rank of the
        right value among the candidates.
        """
        rank, candidates = self._rank(sample, fact, asked)
        given, logits = list[int](), asked.logits
        while True:
            given.append(int(logits[: self.vocab_size].argmax()))
            if len(given) == len(fact.answer_tokens):
                break
            logits = self.model.read(given[-1:], asked.past, asked.mode)
        expected = tuple(int(token) for token in fact.answer_tokens)
        return Answer(condition, reads, expected, tuple(given), rank, candidates)

    def _rank(self, sample: NeedleSample, fact: EncodedFact, asked: _Asked) -> tuple[int, int]:
        """How many candidates are at least as likely as the right value, and how many there are with it."""
        others = [value for value in sample.candidates if value != fact.answer_tokens]
        right = self._likelihood(fact.answer_tokens, asked)
        return sum(self._likelihood(value, asked) >= right for value in others), len(others) + 1

    def _likelihood(self, value: tuple[int, ...], asked: _Asked) -> float:
        """Log-likelihood of a value after a question, its tokens given one after the other."""
        rows = asked.logits[None]
        if len(value) > 1:
            past = self.model.clone(asked.past)
            rest = self.model.read(value[:-1], past, asked.mode, last_only=False)
            rows = torch.cat([rows, rest.to(rows.dtype)])
        logs = torch.log_softmax(rows[:, : self.vocab_size].float(), -1)
        return float(logs[torch.arange(len(value)), torch.tensor(value)].sum())
