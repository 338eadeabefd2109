"""The picture of a perplexity evaluation: loss by position, and what the memory changes there."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...config.plot_style import PALE, SERIES, STYLE
from .loss_table import LossRow, PerplexityResults


@matplotlib.rc_context(STYLE | {"axes.grid.axis": "y", "svg.hashsalt": "losses"})
def draw_losses(results: PerplexityResults, form: str = "png") -> bytes:
    """PNG or SVG (`form`): the losses, and beside them the differences where there are any."""
    others = results.conditions[1:]
    figure = Figure(figsize=(10.5 if others else 6.0, 4.0), layout="constrained")
    panels = figure.subplots(1, 2 if others else 1, squeeze=False)[0]
    panels[0].set_title("loss by position (nats per token)")
    for number, name in enumerate(results.conditions):
        _band(panels[0], results, [results.find(name, None, span) for span in results.spans()], number, name)
    for number, name in enumerate(others, 1):
        gaps = [results.find(results.conditions[0], name, span) for span in results.spans()]
        _band(panels[1], results, gaps, number, f"less {name}")
    if others:
        panels[1].set_title(f"difference of {results.conditions[0]} (below zero: it predicts better)")
        panels[1].axhline(0, color=PALE, linewidth=0.8)
    for panel in panels:
        panel.legend()
        panel.yaxis.set_major_locator(MaxNLocator(6))
    file = io.BytesIO()
    figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _band(axes: Axes, results: PerplexityResults, rows: list[LossRow], number: int, label: str) -> None:
    places = list(range(len(rows)))
    colour = SERIES[number % len(SERIES)]
    means = [row.loss.mean for row in rows]
    axes.plot(places, means, color=colour, linewidth=1.5, marker="o", markersize=4, label=label)
    axes.fill_between(
        places, [row.loss.low for row in rows], [row.loss.high for row in rows], color=colour, alpha=0.15, linewidth=0
    )
    axes.set_xticks(places, [f"{row.span.start:,}" for row in rows], rotation=30 if len(rows) > 6 else 0)
    axes.set_xlabel("first position of the part (tokens)")
