"""The picture of a domains evaluation: the forgetting matrix of every order."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ...config.plot_style import CHANGE, STYLE
from ..report_svg import picture_file
from .forgetting import DomainResults, ForgettingCell

_COLOURS = LinearSegmentedColormap.from_list("change", list(CHANGE))
_MOST_PANELS = 6
"""Orders that are drawn; the tables have all."""


@matplotlib.rc_context(STYLE | {"axes.grid": False, "svg.hashsalt": "forgetting"})
def draw_forgetting(results: DomainResults, form: str = "png") -> bytes:
    """PNG or SVG (`form`): a panel per order, rows are stages, columns are domains.

    A number is the held-out loss less that of the initial memory, with half the width of its interval.
    """
    orders, names = results.settings.all_orders()[:_MOST_PANELS], results.settings.names
    columns = min(len(orders), 2 if len(names) <= 4 else 1)
    below = math.ceil(len(orders) / columns)
    size = (columns * (1.9 + 1.25 * len(names)), below * (1.3 + 0.5 * (len(names) + 1)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(below, columns, squeeze=False).flatten()
    for order, panel in enumerate(panels):
        if order < len(orders):
            _panel(panel, results, order)
        else:
            panel.set_visible(False)
    figure.suptitle("Held-out loss less that of the initial memory (nats per token; below zero: better)", x=0.01,
                    ha="left", fontsize=10)  # fmt: skip
    return picture_file(figure, form)


def _panel(axes: Axes, results: DomainResults, order: int) -> None:
    names = results.settings.names
    stages = range(1, len(names) + 1)
    cells = [[results.find(name, stage, order=order, versus="initial") for name in names] for stage in stages]
    means = np.array([[cell.loss.mean for cell in row] for row in cells])
    most = _widest(results)
    axes.imshow(np.vstack([np.zeros((1, len(names))), means]), cmap=_COLOURS, vmin=-most, vmax=most, aspect="auto")
    axes.set_title("columns: whose text is measured" if order == 0 else "another order")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names) + 1), ["initial memory", *(f"after {row[0].after}" for row in cells)])
    axes.tick_params(length=0)
    for x, name in enumerate(names):
        initial = results.find(name, 0).loss.mean
        axes.text(x, 0, f"loss {initial:.3f}", ha="center", va="center", fontsize=8, color="#000000")
        for y, row in enumerate(cells, 1):
            colour = "#ffffff" if abs(means[y - 1, x]) > 0.6 * most else "#000000"
            axes.text(x, y, _difference(row[x]), ha="center", va="center", fontsize=8, color=colour)


def _difference(cell: ForgettingCell) -> str:
    half = (cell.loss.high - cell.loss.low) / 2
    return f"{cell.loss.mean:+.4f}" + ("" if math.isnan(half) else f"\n±{half:.4f}")


def _widest(results: DomainResults) -> float:
    """The largest difference of all orders, which share their colours."""
    found = [abs(c.loss.mean) for c in results.cells if c.versus == "initial" and c.stage]
    return max(*found, 1e-6)
