"""The picture of an evaluation: recall over depth and length, the controls beside it on the same scale."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ...config.plot_style import INK, PALE, RECALL, STYLE, recall_colour
from ..report_svg import picture_file
from .results import NeedleResults
from .settings import short_length

_COLOURS = LinearSegmentedColormap.from_list("recall", list(RECALL))
_WIDEST = 18
"""Most columns over all panels that stay legible side by side; with more, panels are stacked."""


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def draw_heatmap(results: NeedleResults) -> bytes:
    """PNG of exact match: a panel per condition and number of reads; columns are context lengths, rows are depths and
    their mean."""
    shown = results.panels()
    lengths = sorted(results.settings.lengths)
    rows = len(results.settings.depth_grid()) + 1
    beside = len(shown) if len(shown) * len(lengths) <= _WIDEST else 1
    below = len(shown) // beside
    column, row = 0.82, 0.52
    width = 1.0 + beside * (column * len(lengths) + 0.35) + 0.9
    size = (max(width, 6.5), 1.2 + below * (row * rows + 0.55))
    figure = Figure(figsize=size, dpi=160, facecolor="white", layout="constrained")
    panels = figure.subplots(below, beside, squeeze=False, sharey=True).flatten()
    image = None
    for axes, (condition, reads) in zip(panels, shown, strict=True):
        image = _panel(axes, results, condition, reads)
    figure.supylabel("needle depth in the context", color=INK, fontsize=10)
    figure.supxlabel(f"context length ({results.settings.length_unit})", color=INK, fontsize=10)
    settings = results.settings
    figure.suptitle(
        f"Exact match (needles per context: {settings.needles}, contexts per length: {settings.described_samples()}, "
        f"protocol: {settings.protocol})",
        color=INK, fontsize=11, x=0.01, ha="left",
    )  # fmt: skip
    if image is not None:
        bar = figure.colorbar(image, ax=list(panels), shrink=0.9, pad=0.015, aspect=28)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=PALE, length=0, labelsize=8)
    return picture_file(figure, "png")


def _panel(axes: Axes, results: NeedleResults, condition: str, reads: int) -> AxesImage:
    """One condition; the last row is the mean over depths, with its 95 % interval."""
    lengths, depths = sorted(results.settings.lengths), results.settings.depth_grid()
    cells = np.array([
        [results.find(condition, n, depth, reads=reads).exact_match for n in lengths] for depth in (*depths, None)
    ])  # fmt: skip
    image = axes.imshow(cells, cmap=_COLOURS, vmin=0, vmax=1, aspect="auto")
    axes.set_title(results.title(condition, reads), color=INK, fontsize=10, loc="left")
    axes.set_xticks(range(len(lengths)), [short_length(length) for length in lengths])
    axes.set_yticks(range(len(depths) + 1), [*(f"{100 * depth:.0f} %" for depth in depths), "all"])
    axes.set_xticks(np.arange(len(lengths) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(depths) + 2) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.axhline(len(depths) - 0.5, color="white", linewidth=7)
    axes.tick_params(which="both", length=0, colors=INK, labelsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for y, x in np.ndindex(*cells.shape):
        colour = recall_colour(float(cells[y, x]))[1]
        summary = y == len(depths)
        axes.text(x, y - (0.13 if summary else 0), f"{cells[y, x]:.2f}", ha="center", va="center", color=colour,
                  fontsize=9, fontweight="bold" if summary else "normal")  # fmt: skip
        if summary:
            recall = results.find(condition, lengths[x], reads=reads)
            axes.text(x, y + 0.24, f"{recall.low:.2f}–{recall.high:.2f}", ha="center", va="center", color=colour,
                      fontsize=7)  # fmt: skip
    return image
