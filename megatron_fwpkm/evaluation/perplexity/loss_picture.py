"""The picture of a perplexity evaluation: loss by position, what the memory changes there, and how open its gate is."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...config.plot_style import PALE, STYLE
from ..report_curves import IntervalCurve, draw_interval_curve
from ..report_svg import picture_file
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
        losses = [results.find(name, None, span).loss for span in spans]
        draw_interval_curve(panels[0], IntervalCurve(name, losses), number)
    if others:
        _begin(panels[1], f"difference of {measured} (below zero: it predicts better)", spans)
        panels[1].axhline(0, color=PALE, linewidth=0.8)
    for number, name in enumerate(others, 1):
        gaps = [results.find(measured, name, span).loss for span in spans]
        draw_interval_curve(panels[1], IntervalCurve(f"less {name}", gaps), number)
    if layers:
        _begin(panels[-1], f"mean gate, {measured} (1: only what the memory holds)", spans)
    for number, layer in enumerate(layers):
        ours = [row for row in results.gates if (row.condition, row.layer) == (measured, layer)]
        draw_interval_curve(panels[-1], IntervalCurve(f"layer {layer}", [row.gate for row in ours[1:]]), number)
    for panel in panels:
        panel.legend()
        panel.yaxis.set_major_locator(MaxNLocator(6))
    return picture_file(figure, form)


def _begin(axes: Axes, title: str, spans: Sequence[Span]) -> None:
    axes.set_title(title)
    axes.set_xticks(range(len(spans)), [f"{span.start:,}" for span in spans], rotation=30 if len(spans) > 6 else 0)
    axes.set_xlabel("first position of the part (tokens)")
