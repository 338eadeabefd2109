"""Two evaluations of the same samples: who is better, by how much, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...config.counted_things import count_things
from ..confidence import Estimate, bootstrap_interval, mcnemar_exact
from ..report_curves import IntervalCurve, curve_figure
from ..report_page import ReportPart, Section, summary_table
from ..result_files import csv_text, json_text, rounded
from .paired_answers import AnsweredSamples, Key, check_same_samples

_HEADS = ("context", "samples", "first", "second", "only first", "only second", "McNemar p", "difference [95 %]")


@dataclass(frozen=True)
class PairedRow:
    """The comparison at one length, or over all."""

    length: int | None
    """In tokens; None over all lengths."""
    samples: int
    first: float
    """Mean score, 0 to 1."""
    second: float
    only_first: int
    """Samples of which only the first's answer is correct."""
    only_second: int
    p_value: float
    """Of McNemar's exact test, two-sided."""
    difference: Estimate
    """Second less first, with a bootstrap interval over the samples."""


@dataclass(frozen=True)
class PairedResults:
    """Everything that is reported."""

    names: tuple[str, str]
    """Folder and condition of the first and of the second."""
    rows: tuple[PairedRow, ...]
    """By length, then over all."""
    left_out: int
    """Samples that only one of both has."""
    unfinished: tuple[str, ...]
    """A line for each of both that has not ended."""

    def notes(self) -> list[str]:
        """What to know before the table is read."""
        left_out = f"left out: {count_things(self.left_out, 'sample')} that only one of both has"
        return [*self.unfinished, *([left_out] if self.left_out else [])]

    def plain_rows(self) -> list[dict[str, Any]]:
        """Rows of plain values."""
        return [
            rounded({name: value for name, value in asdict(row).items() if name != "difference"})
            | rounded({"difference": row.difference.mean, "low": row.difference.low, "high": row.difference.high})
            for row in self.rows
        ]

    def to_json(self) -> str:
        """The text of results.json."""
        first, second = self.names
        return json_text({"first": first, "second": second, "left_out": self.left_out, "results": self.plain_rows()})

    def to_csv(self) -> str:
        """The text of results.csv."""
        return csv_text(self.plain_rows())

    def cells(self) -> list[list[str]]:
        """The table as text, its heads first."""
        return [list(_HEADS), *(_cells(row) for row in self.rows)]


def compare_answers(
    first: AnsweredSamples, second: AnsweredSamples, conditions: Sequence[str] | None = None
) -> PairedResults:
    """Compare two evaluations sample by sample.

    Args:
        first: what the second is compared with.
        second: of the same samples.
        conditions: of the first and of the second, or one for both; default: the measured ones.

    Raises:
        ValueError: the samples are not the same, or a condition was not measured.
    """
    shared = check_same_samples(first, second)
    chosen = conditions or (first.conditions()[0], second.conditions()[0])
    of_first, of_second = chosen[0], chosen[-1]
    for flag, samples, name in (("--first", first, of_first), ("--second", second, of_second)):
        known = ", ".join(map(repr, samples.conditions()))
        if name not in samples.conditions():
            raise ValueError(f"{flag} {samples.folder} has no condition {name!r}; choose from {known}")
    pairs = {key: (first.scores[key][of_first], second.scores[key][of_second]) for key in shared}
    by_length: dict[int, list[Key]] = {}
    for key in shared:
        by_length.setdefault(first.lengths[key], []).append(key)
    rows = [_row(length, [pairs[key] for key in by_length[length]]) for length in sorted(by_length)]
    return PairedResults(
        (f"{first.folder} ({of_first})", f"{second.folder} ({of_second})"),
        (*rows, _row(None, list(pairs.values()))),
        len({*first.scores} ^ {*second.scores}),
        tuple(samples.unfinished for samples in (first, second) if samples.unfinished),
    )


def paired_part(results: PairedResults, provenance: Mapping[str, str]) -> ReportPart:
    """The picture and the table."""
    cells = results.cells()
    places = [f"{row.length:,}" for row in results.rows if row.length is not None]
    curve = IntervalCurve("second less first", [row.difference for row in results.rows if row.length is not None])
    figure = curve_figure("second less first", places, [curve], across="context length (tokens)", zero=True)
    note = (
        "“Only first” and “only second” count samples that one of both answers correctly; McNemar's exact test asks "
        "whether chance explains their difference. Brackets: 95&nbsp;% bootstrap intervals over the samples."
    )
    first, second = results.names
    return ReportPart(
        "comparison",
        "Comparison",
        f"{second} against {first}",
        f"{count_things(results.rows[-1].samples, 'sample')} that both have answered; "
        + " ".join([f"{results.left_out:,} that only one has are left out.", *results.unfinished]),
        (
            Section("Difference by length", f'<div class="panels">{figure}</div>'),
            Section("Table", f'{summary_table(cells)}\n<p class="pale">{note}</p>'),
        ),
        None,
        {"first": first, "second": second},
        provenance,
    )


def _row(length: int | None, pairs: Sequence[tuple[float, float]]) -> PairedRow:
    only_first = sum(one == 1 > other for one, other in pairs)
    only_second = sum(other == 1 > one for one, other in pairs)
    return PairedRow(
        length, len(pairs), sum(one for one, _ in pairs) / len(pairs), sum(other for _, other in pairs) / len(pairs),
        only_first, only_second, mcnemar_exact(only_first, only_second),
        bootstrap_interval([other - one for one, other in pairs]),
    )  # fmt: skip


def _cells(row: PairedRow) -> list[str]:
    gap = row.difference
    return [
        "all" if row.length is None else f"{row.length:,}",
        f"{row.samples:,}",
        f"{row.first:.3f}",
        f"{row.second:.3f}",
        f"{row.only_first:,}",
        f"{row.only_second:,}",
        f"{row.p_value:.2g}",
        f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
    ]
