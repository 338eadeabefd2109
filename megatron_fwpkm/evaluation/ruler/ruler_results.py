"""From samples to scores: a row per condition, task and length, means over tasks, effective lengths; JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..causality_verdict import CausalityCheck
from ..confidence import wilson_interval
from ..result_files import aligned, csv_text, json_text, rounded
from .answer_scores import answer_score, cleaned
from .published_rows import PUBLISHED_ROWS
from .ruler_record import RulerRecord
from .ruler_settings import NEVER_SHOWN, RulerSettings
from .ruler_tasks import RULER_TASKS

MEAN = "mean"
"""Name of the row of all tasks."""


@dataclass(frozen=True)
class ScoreRow:
    """Scores of a task at a length, or of all tasks."""

    condition: str
    task: str
    length: int
    score: float
    """In percent; the mean over samples, which is the mean over tasks too, for all have as many."""
    low: float
    high: float
    """Wilson's 95 % interval, wider than necessary where a sample may score between 0 and 1."""
    complete: float
    """Percentage of the samples that score 1."""
    empty: int
    """Samples whose answer is empty; RULER calls them nulls."""
    samples: int


@dataclass(frozen=True)
class PromptCounts:
    """What the model read at a length, over all tasks."""

    length: int
    samples: int
    least_tokens: int
    most_tokens: int
    with_bos: int
    """Prompts that begin with BOS."""
    over_length: int
    """Prompts that exceed the length with BOS and the answer's budget."""
    cut: int = 0
    """Prompts of which tokens were left out: none, ever."""


@dataclass(frozen=True)
class RulerResults:
    """A finished evaluation."""

    settings: RulerSettings
    model_name: str
    conditions: tuple[str, ...]
    """Of every sample: the measured condition, the others, the control that was computed."""
    tasks: tuple[str, ...]
    left_out: dict[str, list[str]]
    """Tasks that were not measured, by the flag whose file they need."""
    rows: tuple[ScoreRow, ...]
    counts: tuple[PromptCounts, ...]
    causality: CausalityCheck
    model_config: dict[str, Any]

    @property
    def measured(self) -> str:
        """The first condition."""
        return self.conditions[0]

    def find(self, condition: str, task: str, length: int) -> ScoreRow:
        """One row. Raises KeyError when there is none."""
        for row in self.rows:
            if (row.condition, row.task, row.length) == (condition, task, length):
                return row
        raise KeyError(f"no row for {condition}, {task}, {length} tokens")

    def effective_length(self, condition: str) -> int | None:
        """The longest length whose mean score exceeds the threshold; None if none does."""
        lengths = [n for n in self.settings.lengths if self.find(condition, MEAN, n).score > self._threshold]
        return max(lengths, default=None)

    @property
    def _threshold(self) -> float:
        return self.settings.effective_threshold

    def to_json(self) -> str:
        """Everything, readable."""
        values = {
            "format": "megatron_fwpkm RULER evaluation 1",
            "model_name": self.model_name,
            "settings": asdict(self.settings),
            "tasks": self.tasks,
            "left_out": self.left_out,
            "effective_length": {name: self.effective_length(name) for name in self.conditions},
            "results": [_flat(row) for row in self.rows],
            "prompts": [asdict(count) for count in self.counts],
            "published": [asdict(row) for row in PUBLISHED_ROWS],
            "causality": self.causality.to_json(),
            "model_config": self.model_config,
        }
        return json_text(values)

    def to_csv(self) -> str:
        """The rows, with a header line."""
        return csv_text([_flat(row) for row in self.rows])


def _flat(row: ScoreRow) -> dict[str, Any]:
    return rounded(asdict(row))


def tabulate_scores(
    settings: RulerSettings, conditions: Sequence[str], records: Sequence[RulerRecord]
) -> tuple[ScoreRow, ...]:
    """All rows. `conditions` are those of the records; the control is computed from the first one's predictions."""
    rows = []
    for condition in (*conditions, NEVER_SHOWN):
        for length in sorted(settings.lengths):
            here = [record for record in records if record.item.length == length]
            asked = [(name, [one for one in here if one.item.task == name]) for name in settings.chosen_tasks()]
            for name, chosen in (*asked, (MEAN, here)):
                rows.append(_row(condition, conditions[0], name, length, chosen))
    return tuple(rows)


def _row(condition: str, measured: str, task: str, length: int, records: Sequence[RulerRecord]) -> ScoreRow:
    scores, empty = [], 0
    for record in records:
        control = condition == NEVER_SHOWN
        text = record.predictions[measured if control else condition]
        right = record.other_answers if control else record.answers
        scores.append(answer_score(text, right, RULER_TASKS[record.item.task].match))
        empty += not cleaned(text)
    total = sum(scores)
    low, high = wilson_interval(total, len(scores))
    complete = sum(score == 1 for score in scores)
    return ScoreRow(
        condition, task, length, 100 * total / len(scores), 100 * low, 100 * high, 100 * complete / len(scores), empty,
        len(scores),
    )  # fmt: skip


def count_prompts(settings: RulerSettings, records: Sequence[RulerRecord]) -> tuple[PromptCounts, ...]:
    """What was read, by length."""
    found = []
    for length in sorted(settings.lengths):
        here = [record for record in records if record.item.length == length]
        tokens = [record.prompt_tokens for record in here]
        with_bos = sum(record.bos for record in here)
        over = sum(record.over_length > 0 for record in here)
        found.append(PromptCounts(length, len(here), min(tokens), max(tokens), with_bos, over))
    return tuple(found)


def score_cells(results: RulerResults, condition: str) -> list[list[str]]:
    """The table of one condition, heads first: a line per task, then the mean, with intervals."""
    lengths = sorted(results.settings.lengths)
    lines = [["task", *(f"{length:,}" for length in lengths)]]
    for task in (*results.tasks, MEAN):
        cells = [results.find(condition, task, length) for length in lengths]
        lines.append([task, *(f"{row.score:.1f} [{row.low:.0f}, {row.high:.0f}]" for row in cells)])
    return lines


def ruler_text(results: RulerResults) -> str:
    """The summary for a terminal: the measured table, the means of the other conditions, the effective length."""
    lengths = sorted(results.settings.lengths)
    others = [["mean, other conditions", *(f"{length:,}" for length in lengths)]]
    for name in results.conditions[1:]:
        others.append([name, *(f"{results.find(name, MEAN, length).score:.1f}" for length in lengths)])
    return "\n\n".join((aligned(score_cells(results, results.measured)), aligned(others), effective_sentence(results)))


def effective_sentence(results: RulerResults) -> str:
    """The effective length, and what it is worth."""
    found = results.effective_length(results.measured)
    threshold = f"{results.settings.effective_threshold:g}"
    said = (
        f"Effective length: {found:,} tokens, the longest measured length whose mean exceeds {threshold}."
        if found is not None
        else f"Effective length: none; no measured length has a mean above {threshold}."
    )
    if missing := len(RULER_TASKS) - len(results.tasks):
        said += f" It is a mean of {len(results.tasks)} of RULER's {len(RULER_TASKS)} tasks ({missing} not measured), "
        said += "so it cannot be compared with published ones."
    return said
