"""The picture of a memory trace: where the answer came from, how the slots are used, how old they are when read."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...config.plot_style import PALE, SERIES, STYLE
from ..report_svg import picture_file
from .trace_results import MemoryTraceResults

_BINS = 100


@matplotlib.rc_context(STYLE | {"axes.grid.axis": "y", "svg.hashsalt": "memory-trace"})
def draw_trace(results: MemoryTraceResults, form: str = "png") -> bytes:
    """PNG or SVG (`form`): attribution over positions, usage of slots by rank, histogram of ages."""
    figure = Figure(figsize=(10.5, 6.0), layout="constrained")
    panels: dict[str, Axes] = figure.subplot_mosaic([["positions", "positions"], ["usage", "ages"]])
    _positions(panels["positions"], results)
    _usage(panels["usage"], results)
    _ages(panels["ages"], results)
    return picture_file(figure, form)


def _positions(axes: Axes, results: MemoryTraceResults) -> None:
    """Share of the answer's reads by the position of what the writers held, summed over its tokens."""
    detail = results.detail
    length, ahead = detail["context_tokens"], detail["lookahead"]
    edges = np.linspace(0, length, min(_BINS, length) + 1)
    for number, layer in enumerate(results.layers):
        places, shares = [], []
        for token in detail["tokens"]:
            for read in token["layers"]:
                if str(read["layer"]) == layer:
                    for slot in read["slots"]:
                        for position, _, _, share in slot["writers"]:
                            places.append(min(position + ahead, length))
                            shares.append(slot["weight"] * share / len(detail["tokens"]))
        heights, _ = np.histogram(places, bins=edges, weights=shares)
        colour = SERIES[number % len(SERIES)]
        axes.bar(edges[:-1], heights, width=np.diff(edges) * 0.9, align="edge", color=colour, alpha=0.75,
                 label=f"layer {layer}")  # fmt: skip
    known = [token["place"] for token in detail["tokens"] if token["place"] is not None]
    if known:
        axes.axvline(known[0], color=SERIES[1], linewidth=1, linestyle="--", label="the fact that is asked for")
    axes.set_title("share of the answer's reads by the position of the text that wrote it")
    axes.set_xlabel("position in the context (tokens)")
    axes.set_xlim(0, length)
    axes.set_ylim(0, None)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend()


def _usage(axes: Axes, results: MemoryTraceResults) -> None:
    """Usage of the slots by rank in the sample that is shown, and the line of equal usage."""
    for number, layer in enumerate(results.layers):
        found = results.records[0].statistics[layer]
        ranks, shares = zip(*found["usage_curve"], strict=True)
        axes.plot(ranks, shares, color=SERIES[number % len(SERIES)], linewidth=1.5,
                  label=f"layer {layer}, KL {found['kl_to_uniform']:.2f} nats")  # fmt: skip
        axes.axhline(1 / found["slots"], color=PALE, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("share of a slot in all reads (dotted: all alike)")
    axes.set_xlabel("rank of the slot")
    axes.legend()


def _ages(axes: Axes, results: MemoryTraceResults) -> None:
    """Ages of slots when they are read: by all tokens, and by the answer's."""
    for number, layer in enumerate(results.layers):
        for name, title, style in (("ages", "all tokens", "-"), ("answer_ages", "answer", "--")):
            bins = np.array(results.histogram(layer, name), dtype=float)
            if bins.any():
                used = int(np.flatnonzero(bins).max()) + 1
                axes.plot([2**i for i in range(used)], bins[:used] / bins.sum(), style, marker="o", markersize=3,
                          color=SERIES[number % len(SERIES)], label=f"layer {layer}, {title}")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title("age of a slot when it is read (share of reads)")
    axes.set_xlabel("tokens since its last writer, from ... on")
    axes.set_ylim(0, None)
    if axes.lines:  # a short text reads no slot that was written
        axes.legend()
