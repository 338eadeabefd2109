"""The picture of a RULER evaluation: scores by task and length, one panel per condition, and the means."""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...config.plot_style import PALE, STYLE, recall_colour
from ..confidence import Estimate
from ..report_curves import IntervalCurve, draw_interval_curve
from ..report_svg import picture_file
from .ruler_results import MEAN, RulerResults


@matplotlib.rc_context(STYLE | {"axes.grid": False, "svg.hashsalt": "ruler"})
def draw_scores(results: RulerResults, form: str = "png") -> bytes:
    """PNG or SVG (`form`): the measured scores as a grid, and beside it the means of all conditions with intervals."""
    rows = len(results.tasks) + 1
    figure = Figure(figsize=(10.5, 1.4 + 0.3 * max(rows, 8)), layout="constrained")
    grid, means = figure.subplots(1, 2)
    _grid(grid, results)
    _means(means, results)
    return picture_file(figure, form)


def _grid(axes: Axes, results: RulerResults) -> None:
    lengths, tasks = sorted(results.settings.lengths), (*results.tasks, MEAN)
    for line, task in enumerate(tasks):
        for column, length in enumerate(lengths):
            score = results.find(results.measured, task, length).score
            background, ink = recall_colour(score / 100)
            axes.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, color=background, linewidth=0))
            axes.text(column, line, f"{score:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=30 if len(lengths) > 4 else 0)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xlabel("length (tokens)")
    axes.set_title(f"score in percent, {results.measured}")


def _means(axes: Axes, results: RulerResults) -> None:
    lengths = sorted(results.settings.lengths)
    for number, name in enumerate(results.conditions):
        rows = [results.find(name, MEAN, length) for length in lengths]
        points = [Estimate(row.score, row.low, row.high) for row in rows]
        draw_interval_curve(axes, IntervalCurve(name, points), number)
    axes.axhline(results.settings.effective_threshold, color=PALE, linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=30 if len(lengths) > 4 else 0)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("length (tokens)")
    axes.set_title("mean over tasks; dashed: threshold of the effective length")
    axes.legend()
