"""Plot training runs: a picture and a page that needs no network, from one or several metrics.jsonl. Example:

python tools/plot_run.py --runs runs/quickstart runs/again --smoothing 0.6 --output runs/plots

writes curves.png and curves.html with loss, learning rate, gradient norm, speed, the memories of every layer, and what
happened when. Runs that are still going on and resumed runs can also be plotted.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.field_metadata import BelowOne
from megatron_fwpkm.config.tool_options import Metavar, add_tool_options, parse_tool


@dataclass(frozen=True)
class PlotOptions:
    """What the tool is asked for; names as its flags."""

    runs: Annotated[tuple[str, ...], Metavar("PATH")]
    """metrics.jsonl of the runs, or the folders that contain them"""
    labels: Annotated[tuple[str, ...] | None, Metavar("NAME")] = None
    """names of the runs, in the same order (default: their folders)"""
    smoothing: Annotated[float, BelowOne()] = 0.0
    """weight of the past in an exponential moving average of training loss and gradient norm, 0 to below 1"""
    output: Annotated[str | None, Metavar("FOLDER")] = None
    """folder for curves.png and curves.html (default: that of the first run)"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), PlotOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the runs and write both files."""
    options = parse_tool(build_parser(), PlotOptions, argv)
    places = [Path(run) for run in options.runs]
    labels = options.labels or (None,) * len(places)
    if len(labels) != len(places):
        raise ValueError(f"--labels has {len(labels)} names for {len(places)} --runs: give one for each")
    from megatron_fwpkm.evaluation.training_curves.history import read_histories

    runs = read_histories(places, labels)
    folder = Path(options.output) if options.output else places[0] if places[0].is_dir() else places[0].parent
    from megatron_fwpkm.evaluation.report_page import render_page
    from megatron_fwpkm.evaluation.training_curves.figure import draw_curves
    from megatron_fwpkm.evaluation.training_curves.page import curves_part

    folder.mkdir(parents=True, exist_ok=True)
    sources = {run.label: str(place) for run, place in zip(runs, places, strict=True)}
    (folder / "curves.png").write_bytes(draw_curves(runs, options.smoothing))
    (folder / "curves.html").write_text(render_page(curves_part(runs, sources, options.smoothing)), encoding="utf-8")
    print(f"{folder / 'curves.png'}\n{folder / 'curves.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
