"""The picture of one or several training runs: losses, schedule, speed and memories over the iterations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ...config.plot_style import PALE, SERIES, STYLE
from ..report_svg import picture_file
from .history import Curve, RunHistory, smooth

_SCALARS = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "tflops_per_device": "model TFLOP/s per device",
    "memory_gb_per_second": "GB/s moved by the memories, per device",
}
_MEMORY = {
    "memorization_loss": "memorization loss",
    "gate_mean": "mean of the gate",
    "coverage": "slots written",
    "collisions": "colliding reads",
    "addressing_loss": "addressing loss",
}
_SPEEDS = ("tokens_per_second", "tflops_per_device", "memory_gb_per_second")
_FRACTIONS = ("gate_mean", "coverage", "collisions")
_DASHES = ("-", "--", ":", "-.")
_COLUMNS = 3
_MOST_EVENTS = 40
"""More lines would hide the curves."""


def draw_curves(runs: Sequence[RunHistory], smoothing: float = 0.0, form: str = "png") -> bytes:
    """PNG or SVG (`form`) of all runs; losses and gradient norms are smoothed, with what was recorded behind them."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "both", "svg.hashsalt": "runs"}):
        scalars = [name for name in _SCALARS if any(run.curve(name)[0] for run in runs)]
        memory = [name for name in _MEMORY if any(run.memory(layer, name)[0] for run in runs for layer in run.layers())]
        beside, rest = scalars[:2], scalars[2:]
        below = -(-(len(rest) + len(memory)) // _COLUMNS)
        figure = Figure(figsize=(11.5, 5.2 + 2.35 * below), layout="constrained")
        grid = figure.add_gridspec(2 + below, _COLUMNS)
        loss = figure.add_subplot(grid[:2, :2])
        _loss(loss, runs, smoothing)
        axes = [loss]
        places = [grid[0, 2], grid[1, 2], *(grid[2 + i // _COLUMNS, i % _COLUMNS] for i in range(below * _COLUMNS))]
        for name, place in zip([*beside, *rest, *memory], [*places[: len(beside)], *places[2:]], strict=False):
            axes.append(figure.add_subplot(place))
            if name in _SCALARS:
                _scalar(axes[-1], runs, name, smoothing)
            else:
                _memory(axes[-1], runs, name)
        for panel in axes:
            _finish(panel, runs)
        return picture_file(figure, form)


def _colours(number: int) -> list[str]:
    return list(islice(cycle(SERIES), number))


def _line(axes: Axes, curve: Curve, colour: str, smoothing: float, label: str | None = None, dash: str = "-") -> None:
    iterations, values = curve
    marker = "o" if len(values) == 1 else None
    if smoothing:
        axes.plot(iterations, values, color=colour, linewidth=0.8, alpha=0.25)
        values = smooth(values, smoothing)
    axes.plot(iterations, values, dash, color=colour, linewidth=1.5, label=label, marker=marker, markersize=4)


def _loss(axes: Axes, runs: Sequence[RunHistory], smoothing: float) -> None:
    axes.set_title("LM loss (nats per token)", fontsize=12)
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        name = f"{run.label}: " if len(runs) > 1 else ""
        _line(axes, run.curve("lm_loss"), colour, smoothing, f"{name}training")
        iterations, values = run.validation()
        if iterations:
            shade = colour if len(runs) > 1 else SERIES[1]
            axes.plot(iterations, values, "--", color=shade, linewidth=1.2, marker="o", markersize=4,
                      label=f"{name}validation")  # fmt: skip
        if run.saves:
            axes.plot(run.saves, [0.0] * len(run.saves), "|", color=colour, markersize=7, clip_on=False,
                      transform=axes.get_xaxis_transform())  # fmt: skip
    axes.legend(loc="upper right", ncols=1 if len(runs) < 5 else 2)
    axes.set_xlabel("iteration")


def _scalar(axes: Axes, runs: Sequence[RunHistory], name: str, smoothing: float) -> None:
    axes.set_title(_SCALARS[name])
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        _line(axes, run.curve(name), colour, smoothing if name == "grad_norm" else 0.0)
    if name in _SPEEDS:
        axes.set_ylim(bottom=0)
    _format(axes, name)


def _memory(axes: Axes, runs: Sequence[RunHistory], name: str) -> None:
    """One run: a colour per layer. Several: a colour per run, and a line style per layer."""
    axes.set_title(f"memory: {_MEMORY[name]}")
    layers = sorted({layer for run in runs for layer in run.layers()}, key=int)
    alone = len(runs) == 1
    for run, run_colour in zip(runs, _colours(len(runs)), strict=True):
        for number, layer in enumerate(layers):
            colour = _colours(len(layers))[number] if alone else run_colour
            dash = "-" if alone else _DASHES[number % len(_DASHES)]
            label = f"layer {layer}" if run is runs[0] and len(layers) > 1 else None
            _line(axes, run.memory(layer, name), colour, 0.0, label, dash)
    if len(layers) > 1:
        axes.legend(fontsize=7, ncols=2)
    _format(axes, name)


def _format(axes: Axes, name: str) -> None:
    if name in _FRACTIONS:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif name == "tokens_per_second":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    elif name == "lr":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1e}" if value else "0"))


def _finish(axes: Axes, runs: Sequence[RunHistory]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for run in runs:
        for iteration, _ in run.events[-_MOST_EVENTS:]:
            axes.axvline(iteration, color=PALE, linewidth=0.7, linestyle=":", zorder=0)
