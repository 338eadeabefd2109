"""A picture of curves with intervals for a report, such as recall over length or loss over position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..config.plot_style import PALE, SERIES, STYLE
from .confidence import Estimate
from .report_svg import embedded_picture, picture_file

# 302 points wide: on a screen of 390 pixels a point is more than a pixel, and 11 points can be read.
_SIZE = (4.2, 3.2)
_TEXT = {name: 11 for name in ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")}


@dataclass(frozen=True)
class IntervalCurve:
    """One line of a picture; a point without an interval has nan as its ends."""

    label: str
    points: Sequence[Estimate]


def draw_interval_curve(axes: Axes, curve: IntervalCurve, series: int, linestyle: str = "-") -> None:
    """Draw a line with a mark at every point, evenly spaced, and its intervals as a band.

    Args:
        axes: to draw on.
        curve: what to draw.
        series: number of the line, which decides its colour.
        linestyle: matplotlib's.
    """
    places, colour = range(len(curve.points)), SERIES[series % len(SERIES)]
    axes.plot(places, [point.mean for point in curve.points], color=colour, marker="o", markersize=4,
              linestyle=linestyle, label=curve.label)  # fmt: skip
    axes.fill_between(places, [point.low for point in curve.points], [point.high for point in curve.points],
                      color=colour, alpha=0.15, linewidth=0)  # fmt: skip


def curve_figure(
    caption: str, places: Sequence[str], curves: Sequence[IntervalCurve], *, across: str,
    limits: tuple[float, float] | None = None, zero: bool = False,
) -> str:  # fmt: skip
    """HTML of a figure; several of them stand side by side within `<div class="panels">`.

    Args:
        caption: what is drawn and its unit, as text.
        places: names on the horizontal axis, evenly spaced, as many as each curve has points.
        curves: at least one.
        across: name of the horizontal axis.
        limits: ends of the vertical axis.
        zero: draw a line at 0, for differences.
    """
    with matplotlib.rc_context(STYLE | _TEXT | {"axes.grid.axis": "y", "svg.hashsalt": caption}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for number, curve in enumerate(curves):
            draw_interval_curve(axes, curve, number, ("-", "--", ":", "-.")[number % 4])
        if zero:
            axes.axhline(0, color=PALE, linewidth=0.8)
        if limits is not None:
            axes.set_ylim(*limits)
        axes.set_xticks(range(len(places)), places, rotation=45 if sum(map(len, places)) > 32 else 0)
        axes.set_xlabel(across)
        if len(curves) > 1:
            figure.legend(loc="outside lower center", ncols=1 if max(len(c.label) for c in curves) > 18 else 2)
        picture = picture_file(figure, "svg")
    alt = f"{caption}, over {across}"
    return f'<figure class="panel"><figcaption>{escape(caption)}</figcaption>{embedded_picture(picture, alt)}</figure>'
