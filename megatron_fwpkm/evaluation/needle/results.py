"""From samples to numbers: a row per condition, length, depth and side of the attention window; JSON and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..causality import CausalityCheck
from ..result_files import aligned, csv_text, json_text, rounded
from .needle_record import NeedleRecord
from .recall import Recall, recall
from .settings import NeedleSettings

Where = Literal["anywhere", "beyond window", "in window"]


@dataclass(frozen=True)
class Row:
    """One number of the tables. `depth` None is all depths together."""

    condition: str
    length: int
    depth: float | None
    where: Where
    recall: Recall


@dataclass(frozen=True)
class NeedleResults:
    """A finished evaluation."""

    settings: NeedleSettings
    model_name: str
    conditions: tuple[str, ...]
    """What was asked of every sample: the measured condition, then the controls."""
    rows: tuple[Row, ...]
    reach: int | None
    """Tokens that attention alone can look back; None for all."""
    chance_exact: float
    """Probability of guessing a whole value."""
    chance_token: float
    """Probability of guessing one of its tokens."""
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

    def find(self, condition: str, length: int, depth: float | None = None, where: Where = "anywhere") -> Recall:
        """One row's numbers. Raises KeyError when the evaluation has no such row."""
        for row in self.rows:
            if (row.condition, row.length, row.depth, row.where) == (condition, length, depth, where):
                return row.recall
        raise KeyError(f"no row for {condition}, {length} tokens, depth {depth}, {where}")

    def to_json(self) -> str:
        """Everything that another run of the same evaluation gives again, readable."""
        values = {
            "format": "megatron_fwpkm needle evaluation 1",
            "model_name": self.model_name,
            "settings": asdict(self.settings) | {"reset": "sample"},
            "attention_reach": self.reach,
            "chance": {"exact_match": self.chance_exact, "token": self.chance_token},
            "results": [_flat(row) for row in self.rows],
            "causality": asdict(self.causality) | {"passed": self.causality.passed},
            "model_config": self.model_config,
        }
        return json_text(values)

    def to_csv(self) -> str:
        """The rows, with a header line."""
        return csv_text([_flat(row) for row in self.rows])


def _flat(row: Row) -> dict[str, Any]:
    place = {"condition": row.condition, "length": row.length, "depth": row.depth, "where": row.where}
    return place | rounded(asdict(row.recall))


def tabulate(settings: NeedleSettings, conditions: Sequence[str], records: Sequence[NeedleRecord]) -> tuple[Row, ...]:
    """All rows of an evaluation: per length and condition all depths together, on either side of the window, and each
    depth. A control that shows no needle has no side of the window."""
    rows = []
    for condition in conditions:
        for length in sorted(settings.lengths):
            ours = [record for record in records if record.cell.length == length]
            rows.append(_row(condition, length, None, "anywhere", ours))
            if condition != "never-shown":
                sides: tuple[tuple[Where, bool], ...] = (("beyond window", False), ("in window", True))
                for where, inside in sides:
                    rows.append(_row(condition, length, None, where, (r for r in ours if r.in_window is inside)))
            for depth in settings.depth_grid():
                rows.append(_row(condition, length, depth, "anywhere", (r for r in ours if r.cell.depth == depth)))
    return tuple(rows)


def _row(condition: str, length: int, depth: float | None, where: Where, records: Iterable[NeedleRecord]) -> Row:
    return Row(condition, length, depth, where, recall(record.answers[condition] for record in records))


def reading_speed(records: Sequence[NeedleRecord]) -> dict[int, float]:
    """Context tokens per second, by length."""
    speeds = {}
    for length in sorted({record.cell.length for record in records}):
        seconds = [record.read_seconds for record in records if record.cell.length == length]
        speeds[length] = length * len(seconds) / max(sum(seconds), 1e-9)
    return speeds


def text_table(results: NeedleResults) -> str:
    """The summary for a terminal: a line per length with exact match and its interval, then the controls. In
    parentheses the exact match over contexts in which attention cannot reach the needle."""
    controls = results.controls
    header = ["tokens", "exact match [95 %]", "(beyond window)", "first token", "token accuracy", *controls]
    lines = [header]
    for length in sorted(results.settings.lengths):
        main = results.find(results.measured, length)
        lines.append([
            f"{length}",
            f"{main.exact_match:.2f} [{main.low:.2f}, {main.high:.2f}]",
            _beyond(results, results.measured, length).strip(),
            f"{main.first_token:.2f}",
            f"{main.token_accuracy:.2f}",
            *(f"{results.find(name, length).exact_match:.2f}{_beyond(results, name, length)}" for name in controls),
        ])  # fmt: skip
    return aligned(lines)


def _beyond(results: NeedleResults, condition: str, length: int) -> str:
    if condition == "never-shown":
        return ""
    beyond = results.find(condition, length, where="beyond window")
    return f" ({beyond.exact_match:.2f})" if beyond.samples else " (none)"
