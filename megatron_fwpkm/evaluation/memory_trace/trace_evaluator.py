"""One loaded model and the texts: everything a process needs to trace samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..causality import CausalityCheck, check_causality
from ..model_loading import LoadedModel
from ..needle.fact_kinds import WordFacts
from ..needle.haystack import Haystack
from ..needle.samples import Cell, make_sample
from ..text_model import text_model
from ..trace.answer_trace import AnswerTask, AnswerTracer
from .memory_trace_record import MemoryTraceRecord
from .memory_trace_settings import MemoryTraceSettings
from .trace_detail import trace_detail

ModelLoader = Callable[[str, str], LoadedModel]
"""Model folder and device to a loaded model; a top-level function, since every process calls it."""


@dataclass(frozen=True)
class TraceSource:
    """What contexts are made of: a haystack, or the tokens of a text and a prompt."""

    haystack: Haystack | None
    text: tuple[np.ndarray, tuple[int, ...]] | None = None


class MemoryTraceEvaluator:
    """Traces the samples of one loaded model.

    Raises:
        ValueError: the model has no product key memory, or the tokenizer cannot express the facts.
    """

    def __init__(self, settings: MemoryTraceSettings, loaded: LoadedModel, source: TraceSource) -> None:
        self.settings, self.source, self.tokenizer, self.bos = settings, source, loaded.tokenizer, loaded.bos
        self.model = text_model(loaded.model)
        try:
            self.tracer = AnswerTracer(self.model, settings.mode, settings.reads, loaded.tokenizer.vocab_size)
        except ValueError as error:
            raise ValueError(f"--model {settings.model}: {error}") from error
        self.spec = None if source.haystack is None else WordFacts.from_config(settings.needle, loaded.tokenizer)
        self.reach = self.model.attention_reach()

    def run(self, index: int, progress: Callable[[int], None] = lambda tokens: None) -> MemoryTraceRecord:
        """The finished sample of this number; `progress` is called with the tokens of every piece that is read."""
        task, lookahead = self.task(index), self.tracer.lookahead
        trace = self.tracer.trace(task, progress)
        shown = index == self.settings.index
        detail = trace_detail(task, trace, self.tokenizer, lookahead) if shown else None
        depth = None if self.spec is None else self.settings.depth_of(index)
        return MemoryTraceRecord.of(index, depth, task, trace, lookahead, detail)

    def task(self, index: int) -> AnswerTask:
        """The context and the question of a sample."""
        if self.source.text is not None:
            context, question = self.source.text
            return AnswerTask(context, question, self.settings.max_new_tokens, stop=self.tokenizer.eod)
        settings = self.settings
        cell = Cell(settings.length, settings.depth_of(index), index)
        assert self.source.haystack is not None and self.spec is not None
        sample = make_sample(
            self.source.haystack, self.spec, cell, needles=settings.needles, seed=settings.seed, reach=self.reach,
            bos=self.bos,
        )  # fmt: skip
        fact = sample.asked
        places = range(sample.asked_start + fact.answer.start, sample.asked_start + fact.answer.stop)
        return AnswerTask(
            sample.context, fact.question, len(places), tuple(map(int, fact.answer_tokens)), tuple(places)
        )

    def progress_note(self, records: Sequence[MemoryTraceRecord]) -> str:
        """A short status: the answers that are right so far."""
        return f"{sum(record.exact for record in records)} of {len(records)} correct"

    def causality(self) -> CausalityCheck:
        """The check on the beginning of the first context."""
        return check_causality(self.model, self.task(self.settings.index).context, self.tokenizer.vocab_size)


def make_trace_evaluator(
    settings: MemoryTraceSettings, source: TraceSource, loader: ModelLoader, device: str
) -> Callable[[int], MemoryTraceRecord]:
    """What a worker process does with the number of a sample."""
    return MemoryTraceEvaluator(settings, loader(settings.model, device), source).run
