"""The picture of a perplexity evaluation: loss by position, what the memory changes there, and how open its gate is."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...config.plot_style import PALE, SERIES, STYLE
from ..confidence import Estimate
from .loss_table import PerplexityResults
from .spans import Span


@matplotlib.rc_context(STYLE | {"axes.grid.axis": "y", "svg.hashsalt": "losses"})
def draw_losses(results: PerplexityResults, form: str = "png") -> bytes:
    """PNG or SVG (`form`): the losses, the differences where there are any, and the gates where there are any."""
    measured, *others = results.conditions
    layers = sorted({row.layer for row in results.gates if row.condition == measured})
    count = 1 + bool(others) + bool(layers)
    figure = Figure(figsize=(1.0 + 4.8 * count, 4.0), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    spans = results.spans()
    _begin(panels[0], "loss by position (nats per token)", spans)
    for number, name in enumerate(results.conditions):
        _band(panels[0], [results.find(name, None, span).loss for span in spans], number, name)
    if others:
        _begin(panels[1], f"difference of {measured} (below zero: it predicts better)", spans)
        panels[1].axhline(0, color=PALE, linewidth=0.8)
    for number, name in enumerate(others, 1):
        _band(panels[1], [results.find(measured, name, span).loss for span in spans], number, f"less {name}")
    if layers:
        _begin(panels[-1], f"mean gate, {measured} (1: only what the memory holds)", spans)
    for number, layer in enumerate(layers):
        ours = [row for row in results.gates if (row.condition, row.layer) == (measured, layer)]
        _band(panels[-1], [row.gate for row in ours[1:]], number, f"layer {layer}")
    for panel in panels:
        panel.legend()
        panel.yaxis.set_major_locator(MaxNLocator(6))
    file = io.BytesIO()
    figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _begin(axes: Axes, title: str, spans: Sequence[Span]) -> None:
    axes.set_title(title)
    axes.set_xticks(range(len(spans)), [f"{span.start:,}" for span in spans], rotation=30 if len(spans) > 6 else 0)
    axes.set_xlabel("first position of the part (tokens)")


def _band(axes: Axes, numbers: Sequence[Estimate], series: int, label: str) -> None:
    places = list(range(len(numbers)))
    colour = SERIES[series % len(SERIES)]
    axes.plot(places, [one.mean for one in numbers], color=colour, linewidth=1.5, marker="o", markersize=4, label=label)
    axes.fill_between(
        places, [one.low for one in numbers], [one.high for one in numbers], color=colour, alpha=0.15, linewidth=0
    )
