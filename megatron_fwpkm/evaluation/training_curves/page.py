"""The page of training runs: their picture, a table, and what happened when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..report_page import ReportPart, Section, embedded_picture, summary_table
from .figure import draw_curves
from .history import RunHistory


def curves_part(runs: Sequence[RunHistory], sources: Mapping[str, str], smoothing: float) -> ReportPart:
    """The picture, the table and the events; `sources` are the files of the runs by label."""
    title = "Training of " + ", ".join(run.label for run in runs)
    sections = [
        Section("Runs", _table(runs)),
        Section("Curves", embedded_picture(draw_curves(runs, smoothing, "svg"), "Curves")),
    ]
    if any(run.events for run in runs):
        sections.append(Section("Events", _events(runs)))
    lead = "Dotted vertical lines are the events that are listed below." if len(sections) > 2 else "No events recorded."
    if any(run.saves for run in runs):
        lead += " Marks at the bottom of the loss are checkpoints."
    return ReportPart("training", title, title, lead, tuple(sections), None, {"smoothing": smoothing}, sources)


def _table(runs: Sequence[RunHistory]) -> str:
    rows = {run.label: run.summary() for run in runs}
    names = list(next(iter(rows.values())))
    return summary_table([["run", *names], *([label, *(row[name] for name in names)] for label, row in rows.items())])


def _events(runs: Sequence[RunHistory]) -> str:
    rows = [[run.label, f"{iteration:,}", what] for run in runs for iteration, what in run.events]
    return summary_table([["run", "iteration", "event"], *rows])
