"""One loaded model, one text and the settings: everything a process needs to measure samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...data.training.needles import NeedleSpec
from ..causality import CausalityCheck, check_causality
from ..model_loading import LoadedModel
from ..text_model import text_model
from .answers import NeedleReader
from .haystack import Haystack
from .needle_record import NeedleRecord
from .samples import Cell, NeedleSample, all_cells, make_sample
from .settings import NeedleSettings

Loader = Callable[[str, str], LoadedModel]
"""Model folder and device to a loaded model; a top-level function, since every process calls it."""


class Evaluator:
    """Makes samples and asks one loaded model about them."""

    def __init__(self, settings: NeedleSettings, loaded: LoadedModel, haystack: Haystack) -> None:
        """Raises ValueError if the tokenizer cannot express the facts. That they fit is checked before."""
        self.settings = settings
        self.tokenizer = loaded.tokenizer
        self.bos = loaded.bos
        self.haystack = haystack
        self.spec = NeedleSpec.from_config(settings.needle, loaded.tokenizer)
        self.reader = NeedleReader(text_model(loaded.model), settings, loaded.tokenizer.vocab_size)

    def run(self, cell: Cell) -> NeedleRecord:
        """The finished sample of a cell."""
        sample = self._sample(cell)
        result = self.reader.ask(sample)
        texts = {"question": self._text(sample.asked.question), "value": self._text(sample.asked.answer_tokens)}
        texts |= {condition: self._text(answer.given) for condition, answer in result.answers.items()}
        return NeedleRecord(
            cell, sample.asked_start, sample.in_window, round(result.read_seconds, 4), result.answers, texts
        )

    def progress_note(self, records: Sequence[NeedleRecord]) -> str:
        """A short status: the current length and the correct answers so far."""
        correct = sum(record.answers[self.reader.conditions[0]].exact for record in records)
        return f"{records[-1].cell.length} tokens, {correct} of {len(records)} correct"

    def causality(self) -> CausalityCheck:
        """The check on the shortest length's first context."""
        sample = self._sample(next(all_cells(self.settings)))
        return check_causality(self.reader.model, sample.context, self.tokenizer.vocab_size)

    def _sample(self, cell: Cell) -> NeedleSample:
        settings = self.settings
        return make_sample(
            self.haystack, self.spec, cell, needles=settings.needles, seed=settings.seed, reach=self.reader.reach,
            bos=self.bos,
        )  # fmt: skip

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode([int(token) for token in tokens])


def make_evaluator(
    settings: NeedleSettings, haystack: Haystack, loader: Loader, device: str
) -> Callable[[Cell], NeedleRecord]:
    """What a worker process does with a cell; `loader` as in `evaluate`."""
    return Evaluator(settings, loader(settings.model, device), haystack).run
