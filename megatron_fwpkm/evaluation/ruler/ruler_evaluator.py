"""One loaded model, the sources and the settings: everything a process needs to measure samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from ..causality import check_causality
from ..causality_verdict import CausalityCheck
from ..model_loading import LoadedModel
from ..text_model import MemoryMode, text_model
from .answer_scores import answer_score
from .prompt_reader import PromptReader
from .prompt_sizes import RulerSample
from .ruler_record import RulerItem, RulerRecord
from .ruler_settings import WITHOUT_MEMORY, RulerSettings
from .ruler_tasks import RULER_TASKS
from .sample_stream import RulerSources, Stream, ruler_samples
from .source_files import load_sources

RulerLoader = Callable[[str, str], LoadedModel]
"""Model folder and device to a loaded model; a top-level function, since every process calls it."""


class SampleShelf:
    """Samples by number. They are drawn in order; those of one task and length are kept."""

    def __init__(self, settings: RulerSettings, tokens: Callable[[str], int], sources: RulerSources) -> None:
        self._settings, self._tokens, self._sources = settings, tokens, sources
        self._of: tuple[str, int] | None = None
        self._stream: Stream = iter(())
        self._drawn: list[RulerSample] = []

    def sample(self, task: str, length: int, index: int) -> RulerSample:
        """Sample number `index`. Raises ValueError if the length is too short for the task."""
        if self._of != (task, length):
            self._of, self._drawn = (task, length), []
            self._stream = ruler_samples(task, length, self._settings.seed, self._tokens, self._sources)
        while len(self._drawn) <= index:
            self._drawn.append(next(self._stream)[0])
        return self._drawn[index]


class RulerEvaluator:
    """Makes samples and lets one loaded model answer them."""

    def __init__(self, settings: RulerSettings, loaded: LoadedModel, sources: RulerSources) -> None:
        self.settings, self.tokenizer, self.bos = settings, loaded.tokenizer, loaded.bos
        self.model = text_model(loaded.model)
        self.reader = PromptReader(self.model, self.tokenizer.vocab_size, self.tokenizer.eod)
        self.conditions = settings.asked_conditions(self.model.has_memory)
        self._shelf = SampleShelf(settings, lambda text: len(self.tokenizer.encode(text)), sources)

    def run(self, item: RulerItem) -> RulerRecord:
        """The finished sample. Raises ValueError if the length is too short for the task."""
        sample = self._shelf.sample(item.task, item.length, item.index)
        other = self._shelf.sample(item.task, item.length, item.index + 1)
        prompt, budget = self._encoded(sample), RULER_TASKS[item.task].budget
        begin = time.monotonic()
        given = {
            name: self.reader.answer(prompt, budget, cast(MemoryMode, "on" if name == WITHOUT_MEMORY else name))
            for name in self.conditions
        }
        return RulerRecord(
            item, len(prompt), self.bos is not None, max(0, len(prompt) + budget - item.length), sample.answers,
            other.answers, {name: self.tokenizer.decode(tokens) for name, tokens in given.items()},
            {name: len(tokens) for name, tokens in given.items()},
            round(time.monotonic() - begin, 4),
        )  # fmt: skip

    def progress_note(self, records: Sequence[RulerRecord]) -> str:
        """A short status: the current task and length, and its mean score so far."""
        item = records[-1].item
        match, measured = RULER_TASKS[item.task].match, self.conditions[0]
        scores = [
            answer_score(record.predictions[measured], record.answers, match)
            for record in records
            if (record.item.task, record.item.length) == (item.task, item.length)
        ]
        return f"{item.task} at {item.length} tokens, score {100 * sum(scores) / len(scores):.0f}"

    def causality(self) -> CausalityCheck:
        """The check on the beginning of the shortest length's first sample."""
        sample = self._shelf.sample(self.settings.chosen_tasks()[0], min(self.settings.lengths), 0)
        return check_causality(self.model, self._encoded(sample), self.tokenizer.vocab_size)

    def _encoded(self, sample: RulerSample) -> np.ndarray:
        begins = [] if self.bos is None else [self.bos]
        return np.asarray(begins + self.tokenizer.encode(sample.prompt), dtype=np.int64)


def make_ruler_evaluator(
    settings: RulerSettings, loader: RulerLoader, device: str
) -> Callable[[RulerItem], RulerRecord]:
    """What a worker process does with an item; `loader` as in `evaluate_ruler`."""
    return RulerEvaluator(settings, loader(settings.model, device), load_sources(settings)).run
