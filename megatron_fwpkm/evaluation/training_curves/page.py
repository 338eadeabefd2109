"""The page of training runs: their picture, a table, and what happened when."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from ..report_page import Section, render_page
from .figure import draw_curves
from .history import RunHistory


def render_curves(runs: Sequence[RunHistory], sources: Mapping[str, str], smoothing: float) -> str:
    """HTML that needs no other file and no network; `sources` are the files of the runs by label."""
    picture = base64.b64encode(draw_curves(runs, smoothing, "svg")).decode()
    title = "Training of " + ", ".join(run.label for run in runs)
    sections = [
        Section("Runs", _table(runs)),
        Section("Curves", f'<img alt="Curves" style="width:100%" src="data:image/svg+xml;base64,{picture}">'),
    ]
    if any(run.events for run in runs):
        sections.append(Section("Events", _events(runs)))
    lead = "Dotted vertical lines are the events that are listed below." if len(sections) > 2 else "No events recorded."
    if any(run.saves for run in runs):
        lead += " Marks at the bottom of the loss are checkpoints."
    return render_page(
        title, title, lead, sections, causality=None, settings={"smoothing": smoothing}, provenance=sources
    )


def _table(runs: Sequence[RunHistory]) -> str:
    rows = {run.label: run.summary() for run in runs}
    names = list(next(iter(rows.values())))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("run", *names))
    body = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(f'<td data-label="{escape(name)}">{escape(row[name])}</td>' for name in names)
        + "</tr>"
        for label, row in rows.items()
    )
    return f'<table class="summary"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _events(runs: Sequence[RunHistory]) -> str:
    rows = "".join(
        f"<tr><td>{escape(run.label)}</td><td data-label=iteration>{iteration:,}</td>"
        f"<td data-label=event>{escape(what)}</td></tr>"
        for run in runs
        for iteration, what in run.events
    )
    head = "<tr><th>run</th><th>iteration</th><th>event</th></tr>"
    return f'<table class="summary"><thead>{head}</thead><tbody>{rows}</tbody></table>'
