"""The picture of recall over context length: a line per condition and number of reads, with its intervals."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure

from ...config.plot_style import PALE, SERIES, STYLE
from ..report_svg import picture_file
from .results import NeedleResults
from .settings import short_length


@matplotlib.rc_context(STYLE | {"axes.grid.axis": "y", "svg.hashsalt": "recall"})
def draw_curve(results: NeedleResults, form: str = "png") -> bytes:
    """PNG or SVG (`form`): exact match with Wilson 95 % intervals, and a line at the level of guessing."""
    lengths = sorted(results.settings.lengths)
    shown = [(name, number) for name in results.conditions for number in results.reads_of(name)]
    figure = Figure(figsize=(8.5, 4.0), layout="constrained")
    axes = figure.subplots()
    for place, (condition, reads) in enumerate(shown):
        found = [results.find(condition, length, reads=reads) for length in lengths]
        # Lines at the same height stay told apart when each stands a little beside the last.
        places = [index + 0.05 * (place - (len(shown) - 1) / 2) for index in range(len(lengths))]
        below = [max(0.0, one.exact_match - one.low) for one in found]
        above = [max(0.0, one.high - one.exact_match) for one in found]
        axes.errorbar(
            places, [one.exact_match for one in found], yerr=[below, above], color=SERIES[place % len(SERIES)],
            linestyle="-" if condition == results.measured else ":", marker="o", markersize=4, linewidth=1.4,
            capsize=2, label=results.title(condition, reads),
        )  # fmt: skip
    axes.axhline(results.chance_exact, color=PALE, linewidth=0.8, linestyle="--", label="guessing")
    axes.set_xticks(range(len(lengths)), [short_length(length) for length in lengths])
    axes.set_xlabel(f"context length ({results.settings.length_unit})")
    axes.set_title(f"exact match with 95 % intervals, protocol {results.settings.protocol}")
    axes.set_ylim(-0.04, 1.04)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return picture_file(figure, form)
