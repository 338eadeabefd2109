"""From samples to numbers: a row per condition, length, depth and side of the attention window; JSON and CSV."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...config.counted_things import count_things
from ..causality import CausalityCheck
from ..result_files import aligned, csv_text, json_text, rounded
from .needle_record import NeedleRecord
from .recall import Recall, recall
from .settings import CONDITION_TITLES, WRITTEN_NOTHING, NeedleSettings

Where = Literal["anywhere", "beyond window", "in window"]


@dataclass(frozen=True)
class Row:
    """One number of the tables. `depth` None is all depths together."""

    condition: str
    reads: int
    length: int
    depth: float | None
    where: Where
    recall: Recall


@dataclass(frozen=True)
class ContextCounts:
    """What is counted of the contexts, to see that nothing is wrong with them."""

    truncated: int
    """Contexts of which the model has not read every token: must be 0."""
    least_bos: int
    """BOS tokens of the context that has the fewest."""
    most_bos: int
    """BOS tokens of the context that has the most."""
    tokens: dict[int, tuple[int, int]]
    """By length, tokens of the shortest and of the longest context; they differ where lengths are words."""

    @classmethod
    def of(cls, records: Sequence[NeedleRecord]) -> ContextCounts:
        """Counts over the contexts of finished samples; there is at least one."""
        tokens = {
            length: (min(counts), max(counts))
            for length in sorted({record.cell.length for record in records})
            if (counts := [record.tokens for record in records if record.cell.length == length])
        }
        bos = [record.bos for record in records]
        return cls(sum(record.truncated != 0 for record in records), min(bos), max(bos), tokens)


@dataclass(frozen=True)
class NeedleResults:
    """A finished evaluation."""

    settings: NeedleSettings
    model_name: str
    conditions: tuple[str, ...]
    """What was asked of every sample: the measured condition, then the controls."""
    reads: tuple[int, ...]
    """How many times contexts were read before the answer, ascending."""
    contexts: ContextCounts
    rows: tuple[Row, ...]
    reach: int | None
    """Tokens that attention alone can look back; None for all."""
    chance_exact: float
    """Probability of guessing a whole value."""
    chance_token: float | None
    """Probability of guessing one of its tokens; None where that depends on the tokenizer."""
    tokens_per_second: dict[int, float]
    """By length: context tokens read per second and process, memory on."""
    causality: CausalityCheck
    provenance: dict[str, str]
    model_config: dict[str, Any]

    @property
    def measured(self) -> str:
        """The measured condition: memory on, or no memory for a model without one."""
        return self.conditions[0]

    @property
    def controls(self) -> tuple[str, ...]:
        """The conditions beside it."""
        return self.conditions[1:]

    def title(self, condition: str, reads: int) -> str:
        """What to call a condition after so many reads."""
        name = CONDITION_TITLES[condition]
        return name if self.reads == (1,) or condition in WRITTEN_NOTHING else f"{name}, {count_things(reads, 'read')}"

    def panels(self) -> tuple[tuple[str, int], ...]:
        """What the heatmaps show: the measured condition after every number of reads, the controls after the most."""
        measured = [(self.measured, number) for number in self.reads_of(self.measured)]
        return (*measured, *((control, self.reads_of(control)[-1]) for control in self.controls))

    def reads_of(self, condition: str) -> tuple[int, ...]:
        """Numbers of reads for which a condition was measured."""
        return reads_of(condition, self.reads)

    def find(
        self, condition: str, length: int, depth: float | None = None, where: Where = "anywhere",
        reads: int | None = None,
    ) -> Recall:  # fmt: skip
        """One row's numbers, after the fewest reads unless `reads` says otherwise; where the context is not written,
        after any. Raises KeyError when the evaluation has no such row.
        """
        known = self.reads_of(condition)
        wanted = known[0] if reads is None or condition in WRITTEN_NOTHING else reads
        for row in self.rows:
            if (row.condition, row.reads, row.length, row.depth, row.where) == (
                condition, wanted, length, depth, where,
            ):  # fmt: skip
                return row.recall
        raise KeyError(f"no row for {condition}, {length} tokens, depth {depth}, {where}, {wanted} reads")

    def to_json(self) -> str:
        """Everything that another run of the same evaluation gives again, readable."""
        values = {
            "format": "megatron_fwpkm needle evaluation 1",
            "model_name": self.model_name,
            "settings": asdict(self.settings),
            "attention_reach": self.reach,
            "chance": {"exact_match": self.chance_exact, "token": self.chance_token},
            "contexts": asdict(self.contexts),
            "results": [_flat(row) for row in self.rows],
            "causality": self.causality.to_json(),
            "model_config": self.model_config,
        }
        return json_text(values)

    def to_csv(self) -> str:
        """The rows, with a header line."""
        return csv_text([_flat(row) for row in self.rows])


def reads_of(condition: str, reads: tuple[int, ...]) -> tuple[int, ...]:
    """Those of `reads` for which a condition is measured: a context that is not written is read once."""
    return (1,) if condition in WRITTEN_NOTHING else reads


def _flat(row: Row) -> dict[str, Any]:
    place = {name: value for name, value in vars(row).items() if name != "recall"}
    return place | rounded(asdict(row.recall))


def tabulate(
    settings: NeedleSettings, conditions: Sequence[str], reads: tuple[int, ...], records: Sequence[NeedleRecord]
) -> tuple[Row, ...]:
    """All rows of an evaluation: per condition, number of reads and length all depths together, on either side of the
    window, and each depth. A control that shows no needle has no side of the window."""
    rows = []
    for condition, number in ((name, number) for name in conditions for number in reads_of(name, reads)):
        for length in sorted(settings.lengths):
            ours = [record for record in records if record.cell.length == length]
            groups: list[tuple[float | None, Where, list[NeedleRecord]]] = [(None, "anywhere", ours)]
            if condition != "never-shown":
                groups.append((None, "beyond window", [record for record in ours if not record.in_window]))
                groups.append((None, "in window", [record for record in ours if record.in_window]))
            for depth in settings.depth_grid():
                groups.append((depth, "anywhere", [record for record in ours if record.cell.depth == depth]))
            for place, where, chosen in groups:
                found = recall(record.answer(condition, number) for record in chosen)
                rows.append(Row(condition, number, length, place, where, found))
    return tuple(rows)


def reading_speed(records: Sequence[NeedleRecord]) -> dict[int, float]:
    """Context tokens per second, by length (which may count words)."""
    speeds = {}
    for length in sorted({record.cell.length for record in records}):
        ours = [record for record in records if record.cell.length == length]
        seconds = sum(record.read_seconds for record in ours)
        speeds[length] = sum(record.tokens for record in ours) / max(seconds, 1e-9)
    return speeds


def text_table(results: NeedleResults) -> str:
    """The summary for a terminal: a line per length and number of reads with exact match and its interval, then the
    controls. In parentheses the exact match over contexts in which attention cannot reach the needle."""
    controls = results.controls
    many = len(results.reads) > 1
    header = [results.settings.length_unit, *["reads"] * many, "exact match [95 %]", "(beyond window)", "first token",
              "token accuracy", "of candidates", *controls]  # fmt: skip
    lines = [header]
    for length, reads in itertools.product(sorted(results.settings.lengths), results.reads):
        main = results.find(results.measured, length, reads=reads)
        lines.append([
            f"{length}",
            *[f"{reads}"] * many,
            f"{main.exact_match:.2f} [{main.low:.2f}, {main.high:.2f}]",
            _beyond(results, results.measured, length, reads).strip(),
            f"{main.first_token:.2f}",
            f"{main.token_accuracy:.2f}",
            f"{main.candidate_accuracy:.2f}",
            *(
                f"{results.find(name, length, reads=reads).exact_match:.2f}{_beyond(results, name, length, reads)}"
                for name in controls
            ),
        ])  # fmt: skip
    return aligned(lines)


def _beyond(results: NeedleResults, condition: str, length: int, reads: int) -> str:
    if condition == "never-shown":
        return ""
    beyond = results.find(condition, length, where="beyond window", reads=reads)
    return f" ({beyond.exact_match:.2f})" if beyond.samples else " (none)"
