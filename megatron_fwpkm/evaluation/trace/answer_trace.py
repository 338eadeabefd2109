"""What a model reads in its memories while it answers, and which tokens wrote that.

Every token is attributed at the moment in which it reads: only tokens whose chunk has been written can be named. What
is kept does not grow with the text: the last writers of every slot (`WRITERS_PER_SLOT`) and the counts of
`SlotStatistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..text_model import MemoryMode, TextModel
from .slot_reads import SlotReads, SlotWrites, watch_memory
from .slot_statistics import SlotStatistics
from .writer_record import WriterRecord

SEGMENT = 2048
"""Tokens that are read between two reports of progress."""


@dataclass(frozen=True)
class AnswerTask:
    """A context that is read and a question that is asked about it."""

    context: np.ndarray
    """int64 [N]"""
    question: tuple[int, ...]
    max_new_tokens: int
    expected: tuple[int, ...] = ()
    """Tokens of the right answer, where it is known."""
    places: tuple[int, ...] = ()
    """Where each of them stands in the context."""
    stop: int | None = None
    """The token at which an answer ends early."""


class SlotSource(NamedTuple):
    """A token that wrote a slot before it was read."""

    position: int
    """Its place in the context; from the context's length on, in question and answer."""
    read: int
    """In which read of the context it wrote, from 1."""
    chunk: int
    """Which write of the layer it was part of, from 0."""
    share: float
    """Of what the last writers have left in the slot."""


class SlotRead(NamedTuple):
    """A slot that was read for one answer token."""

    head: int
    slot: int
    weight: float
    """Over all heads and slots of the layer these add up to 1."""
    age: int
    """Tokens since its last writer; 0 where nobody wrote it."""
    different_writers: int
    """Tokens that wrote it within one read of the context; more than one are a collision."""
    writers: tuple[SlotSource, ...]
    """The last of them, oldest first."""


class LayerRead(NamedTuple):
    """What one token read in one layer."""

    gate: float
    slots: tuple[SlotRead, ...]
    """Of all heads, heaviest first."""


@dataclass(frozen=True)
class TracedToken:
    """A token of an answer, and what was read by the token before it, which predicts it."""

    given: int
    layers: Mapping[int, LayerRead]
    """By layer index from 0."""


@dataclass(frozen=True)
class AnswerTrace:
    """An answer, where it came from, and how the memories were used up to its end."""

    tokens: tuple[TracedToken, ...]
    statistics: Mapping[int, Mapping[str, Any]]
    """By layer index from 0, what `SlotStatistics.summary` gives."""

    @property
    def given(self) -> tuple[int, ...]:
        """The answer."""
        return tuple(token.given for token in self.tokens)


class AnswerTracer:
    """Traces answers of one model.

    Args:
        model: with a product key memory.
        mode: `ask-after-write` reads the context, writes what waits and asks a memory that stands still; `streaming`
            asks as the text goes on, and goes on writing; `memory-off` reads the initial memory.
        reads: how often the context is read; attention begins anew with each.
        vocab_size: ids from here on are padding and never an answer.

    Raises:
        ValueError: the model has no product key memory.
    """

    def __init__(self, model: TextModel, mode: str, reads: int, vocab_size: int) -> None:
        self.model, self.mode, self.reads, self.vocab_size = model, mode, reads, vocab_size
        config = model.model.config
        if not getattr(config, "fwpkm_layers", None):
            raise ValueError("the model has no product key memory, so there are no slots to trace")
        self.lookahead: int = config.fwpkm_lookahead
        self._sizes = config.fwpkm_num_subkeys**2, config.fwpkm_num_heads

    @torch.inference_mode()
    def trace(self, task: AnswerTask, progress: Callable[[int], None] = lambda tokens: None) -> AnswerTrace:
        """Read the context, ask, and attribute every token of the answer.

        Args:
            task: what is read and asked.
            progress: is called with the number of tokens after every piece of the context.
        """
        cache, run = self.model.new_cache(), _Run(task, self.reads, self._sizes)
        off = self.mode == "memory-off"
        size = self.model.call_size(SEGMENT)
        with watch_memory(cache, 0, run.on_read, run.on_write):
            for number in range(self.reads):
                if number:
                    cache = self.model.next_text(cache)
                run.begin_read()
                for start in range(0, len(task.context), size):
                    part = task.context[start : start + size]
                    self.model.read(part, cache, "off" if off else "on")
                    progress(len(part))
            if self.mode == "ask-after-write":
                self.model.write_waiting(cache)
            mode: MemoryMode = "off" if off else "on" if self.mode == "streaming" else "frozen"
            tokens = tuple(self._answer(task, cache, mode, run))
        return AnswerTrace(tokens, {layer: found.summary() for layer, found in run.statistics.items()})

    def _answer(self, task: AnswerTask, cache: Any, mode: MemoryMode, run: _Run) -> list[TracedToken]:
        """Greedy continuation of the question."""
        tokens: list[TracedToken] = []
        run.wanted = self.reads * len(task.context) + len(task.question) - 1
        logits = self.model.read(task.question, cache, mode)
        while True:
            given = int(logits[: self.vocab_size].argmax())
            if given == task.stop and tokens:
                return tokens
            tokens.append(TracedToken(given, run.found))
            if len(tokens) == task.max_new_tokens:
                return tokens
            run.wanted, run.found = run.wanted + 1, {}
            logits = self.model.read([given], cache, mode)


class _Run:
    """What is kept while one context is read and one question answered."""

    def __init__(self, task: AnswerTask, reads: int, sizes: tuple[int, int]) -> None:
        self.length, self.reads, self.sizes = len(task.context), reads, sizes
        self.record = WriterRecord()
        self.statistics: dict[int, SlotStatistics] = {}
        self.wanted = -1
        """Number of the token whose reads are attributed."""
        self.found: dict[int, LayerRead] = {}
        """By layer, what it read."""

    def begin_read(self) -> None:
        """The context is read from its beginning."""
        for found in self.statistics.values():
            found.begin_read()

    def on_write(self, layer: int, written: SlotWrites) -> None:
        """Note a write."""
        self.record.add(layer, written)
        self._statistics(layer).write(written)

    def on_read(self, layer: int, first: int, reads: SlotReads) -> None:
        """Count reads, and attribute those of the wanted token with the writers of this moment."""
        found = self._statistics(layer)
        found.read(first, reads)
        if first + len(reads.slots) - 1 == self.wanted:
            slots, weights = reads.slots[-1], reads.weights[-1]
            ages = found.age_of(torch.tensor(self.wanted), slots)
            read = [
                SlotRead(
                    head,
                    slot,
                    weight,
                    int(ages[head, place]),
                    int(found.most_writers[slot]),
                    self._sources(layer, slot),
                )
                for head in range(len(slots))
                for place, (slot, weight) in enumerate(zip(slots[head].tolist(), weights[head].tolist(), strict=True))
            ]
            self.found[layer] = LayerRead(float(reads.gates[-1]), tuple(sorted(read, key=lambda entry: -entry.weight)))

    def _statistics(self, layer: int) -> SlotStatistics:
        if layer not in self.statistics:
            self.statistics[layer] = SlotStatistics(*self.sizes)
        return self.statistics[layer]

    def _sources(self, layer: int, slot: int) -> tuple[SlotSource, ...]:
        return tuple(
            SlotSource(*self._place(writer.token), writer.write, writer.share) for writer in self.record.of(layer, slot)
        )

    def _place(self, number: int) -> tuple[int, int]:
        """Position and read of a token."""
        read = min(number // self.length, self.reads - 1)
        return number - read * self.length, read + 1
