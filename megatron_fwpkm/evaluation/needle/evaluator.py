"""One loaded model, one text and the settings: everything a process needs to measure samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..causality import CausalityCheck, check_causality
from ..model_loading import LoadedModel
from ..text_model import text_model
from .answers import NeedleReader, SampleResult
from .fact_kinds import fact_kind
from .haystack import Haystack
from .needle_record import NeedleRecord
from .samples import Cell, NeedleSample, all_cells, earlier_cells, file_of, make_sample
from .settings import NeedleSettings

Loader = Callable[[str, str], LoadedModel]
"""Model folder and device to a loaded model; a top-level function, since every process calls it."""


class Evaluator:
    """Makes samples and asks one loaded model about them.

    Where the memory is carried, the samples of a chain are measured in their order: one that does not follow the last
    is reached by reading those before it again, so that an interrupted evaluation gives what an uninterrupted one does.
    """

    def __init__(self, settings: NeedleSettings, loaded: LoadedModel, haystack: Haystack) -> None:
        """Raises ValueError if the tokenizer cannot express the facts. That they fit is checked before."""
        self.settings = settings
        self.tokenizer = loaded.tokenizer
        self.bos = loaded.bos
        self.haystack = haystack
        self.facts = fact_kind(settings.needle_kind, settings.needle, loaded.tokenizer)
        self.reader = NeedleReader(text_model(loaded.model), settings, loaded.tokenizer.vocab_size)
        self._last: tuple[Cell, Any] | None = None
        self._ready: dict[Cell, NeedleRecord] = {}

    def run(self, cell: Cell) -> NeedleRecord:
        """The finished sample of a cell."""
        if not self.settings.carries_memory:
            if cell not in self._ready:
                self._measure_batch(cell)
            return self._ready.pop(cell)
        for earlier in self._missed(cell):
            self._go_on(earlier)
        return self._record(*self._go_on(cell))

    def _go_on(self, cell: Cell) -> tuple[NeedleSample, SampleResult]:
        """Measure a sample with the memory that the one before it has left, and keep what it leaves."""
        past = self._last[1] if self._last is not None and earlier_cells(self.settings, cell) else None
        sample = self.sample(cell)
        result = self.reader.ask(sample, past)
        self._last = (cell, result.past)
        return sample, result

    def _measure_batch(self, cell: Cell) -> None:
        """Measure a cell together with the others of its batch, which is the same whatever was measured before."""
        size = self.settings.batch_size if self.reader.model.has_memory else 1
        batch = (cell.length, cell.index // size)
        cells = [other for other in all_cells(self.settings) if (other.length, other.index // size) == batch]
        samples = [self.sample(other) for other in cells]
        results = self.reader.ask_together(samples)
        self._ready = {
            sample.cell: self._record(sample, result) for sample, result in zip(samples, results, strict=True)
        }

    def _missed(self, cell: Cell) -> list[Cell]:
        """Samples of the cell's chain that have to be read before it, because they are not in the memory."""
        before = earlier_cells(self.settings, cell)
        if self._last is not None and self._last[0] in before:
            return before[before.index(self._last[0]) + 1 :]
        return before

    def _record(self, sample: NeedleSample, result: SampleResult) -> NeedleRecord:
        texts = {"question": self._text(sample.asked.question), "value": self._text(sample.asked.answer_tokens)}
        for answer in result.answers:
            after = "" if answer.reads == 1 else f", {answer.reads} reads"
            texts[f"{answer.condition}{after}"] = self._text(answer.given)
        begins = 0 if self.tokenizer.bos is None else int((sample.context == self.tokenizer.bos).sum())
        return NeedleRecord(
            sample.cell, sample.asked_start, sample.in_window, begins, result.truncated, len(sample.context),
            round(result.read_seconds, 4), result.answers, texts,
        )  # fmt: skip

    def progress_note(self, records: Sequence[NeedleRecord]) -> str:
        """A short status: the current length and the correct answers so far."""
        condition, reads = self.reader.conditions[0], self.reader.reads[-1]
        correct = sum(record.answer(condition, reads).exact for record in records)
        return f"{records[-1].cell.length} {self.settings.length_unit}, {correct} of {len(records)} correct"

    def causality(self) -> CausalityCheck:
        """The check on the shortest length's first context."""
        sample = self.sample(next(all_cells(self.settings)))
        return check_causality(self.reader.model, sample.context, self.tokenizer.vocab_size)

    def sample(self, cell: Cell) -> NeedleSample:
        """The context of a cell and its questions."""
        settings = self.settings
        return make_sample(
            self.haystack, self.facts, cell, needles=settings.needles, seed=settings.seed, reach=self.reader.reach,
            bos=self.bos, distractors=settings.distractors, distractor_kind=settings.distractor_kind,
            file=file_of(cell, settings),
        )  # fmt: skip

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode([int(token) for token in tokens])


def make_evaluator(
    settings: NeedleSettings, haystack: Haystack, loader: Loader, device: str
) -> Callable[[Cell], NeedleRecord]:
    """What a worker process does with a cell; `loader` as in `evaluate`."""
    return Evaluator(settings, loader(settings.model, device), haystack).run
