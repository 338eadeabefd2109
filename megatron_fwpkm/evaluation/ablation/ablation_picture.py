"""The picture of an ablation: the gap to the reference by position, a panel per combination of the other axes."""

from __future__ import annotations

import math

import matplotlib
from matplotlib.figure import Figure

from ...config.plot_style import PALE, SERIES, STYLE
from ..confidence import mean_interval
from ..report_svg import picture_file
from .ablation_table import AblationResults
from .trial_record import TrialRecord


@matplotlib.rc_context(STYLE | {"axes.grid.axis": "y", "svg.hashsalt": "ablation"})
def draw_ablation(results: AblationResults, form: str = "png") -> bytes:
    """PNG or SVG (`form`); bands are 95 % intervals over seeds, on the same seeds of both models."""
    by_place: dict[tuple[str, ...], dict[str, dict[int, TrialRecord]]] = {}
    for record in results.records:
        by_place.setdefault(record.choices[1:], {}).setdefault(record.choices[0], {})[record.seed] = record
    columns = min(3, len(by_place))
    below = math.ceil(len(by_place) / columns)
    figure = Figure(figsize=(2.0 + 4.2 * columns, 0.8 + 3.2 * below), layout="constrained")
    panels = figure.subplots(below, columns, squeeze=False, sharey=True).flatten()
    for panel, (place, choices) in zip(panels, by_place.items(), strict=False):
        panel.set_title(", ".join(place) or "loss by position")
        panel.axhline(0, color=PALE, linewidth=0.8)
        panel.set_xlabel("first position of the part (tokens)")
        reference = choices[results.grid.reference]
        others = [name for name in choices if name != results.grid.reference]
        for name, colour in zip(others, SERIES * len(others), strict=False):
            seeds = [seed for seed in choices[name] if seed in reference]
            if not seeds:
                continue
            starts = [start for start in choices[name][seeds[0]].losses if start != "all"]
            gaps = [
                mean_interval([choices[name][s].losses[start] - reference[s].losses[start] for s in seeds])
                for start in starts
            ]
            places = list(range(len(starts)))
            panel.plot(places, [gap.mean for gap in gaps], marker="o", markersize=3, color=colour, label=name)
            panel.fill_between(
                places, [gap.low for gap in gaps], [gap.high for gap in gaps], color=colour, alpha=0.12, linewidth=0
            )
            panel.set_xticks(places, [f"{int(start):,}" for start in starts], rotation=30)
    for panel in panels[len(by_place) :]:
        panel.set_visible(False)
    panels[0].legend()
    figure.suptitle(
        f"Loss less that of {results.grid.reference} (nats per token; below zero: better)",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return picture_file(figure, form)
