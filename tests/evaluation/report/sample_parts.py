"""Parts of a report with everything that a page can show: tables, heatmaps, curves, wide pictures, things to open."""

from __future__ import annotations

import io

from matplotlib import rc_context
from matplotlib.figure import Figure

from megatron_fwpkm.config.plot_style import PALE, SERIES, STYLE, recall_colour
from megatron_fwpkm.evaluation.causality_verdict import CausalityCheck
from megatron_fwpkm.evaluation.confidence import Estimate
from megatron_fwpkm.evaluation.report_curves import IntervalCurve, curve_figure
from megatron_fwpkm.evaluation.report_page import (
    ReportPart,
    Section,
    definition_list,
    embedded_picture,
    summary_table,
)

LENGTHS = ("256", "1K", "4K", "8K", "32K", "128K")
OPENED = (
    '<details id="raw"><summary>Raw predictions</summary><p>karo dela lumi</p></details><p><a href="#raw">Go to the '
    "raw predictions</a></p>"
)


def wide_picture() -> bytes:
    """SVG of two panels, wider than a telephone."""
    with rc_context(STYLE | {"svg.hashsalt": "sample"}):
        figure = Figure(figsize=(10.5, 3), layout="constrained")
        for axes in figure.subplots(1, 2):
            axes.set_title("loss by position")
            axes.axhline(0.5, color=PALE)
            for number, colour in enumerate(SERIES):
                axes.plot([0, 1], [number / 10, 1 - number / 10], color=colour, label=f"series {number}")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def sample_part(name: str = "needles", *, passed: bool | None = True) -> ReportPart:
    """A part that uses all building blocks."""
    curves = [
        IntervalCurve("memory on", [Estimate(1 - i / 20, 0.95 - i / 12, 1 - i / 40) for i in range(6)]),
        IntervalCurve("memory off", [Estimate(0.02, 0.0, 0.1)] * 6),
    ]
    cells = "".join(
        f"<tr><th>{depth} %</th>"
        + "".join(
            f'<td style="background:{recall_colour(f)[0]};color:{recall_colour(f)[1]}">{f:.2f}</td>'
            for f in (1, 0.8, 0.6, 0.4, 0.2, 0)
        )
        + "</tr>"
        for depth in (0, 50, 100)
    )
    head = "".join(f"<th>{length}</th>" for length in LENGTHS)
    heatmap = f'<figure class="panel"><figcaption>memory on</figcaption><table><tr><th></th>{head}</tr>{cells}</table>'
    heads = ["context", "memory on", "memory off", "chance"]
    rows = [[f"{length} tokens", "0.95 [0.85, 0.99] of 50", "0.02 [0.00, 0.10] of 50", "0.01"] for length in LENGTHS]
    figures = curve_figure("exact match", LENGTHS, curves, across="context length (tokens)", limits=(0, 1.02))
    figures += curve_figure("difference of memory on", LENGTHS, curves[:1], across="context length (tokens)", zero=True)
    return ReportPart(
        name,
        "Needle recall: quickstart",
        "Long-context recall of quickstart & others",
        "5 facts hidden in every context; the model is asked for one.",
        (
            Section("Exact match by depth and length", f'<div class="panels">{heatmap}</figure></div>'),
            Section("Recall over length", f'<div class="panels">{figures}</div>'),
            Section("Recall by length", summary_table([heads, *rows], "Recall")),
            Section("Losses", embedded_picture(wide_picture(), "Loss by position")),
            Section("Controls", definition_list([("memory-off", "no fast weights are written or read")]) + OPENED),
        ),
        None if passed is None else CausalityCheck(128, passed, True),
        {"model": "runs/quickstart/hf", "haystack": "/a/very/long/path/" * 9 + "novel.txt.gz", "seed": 1},
        {"command": "python tools/evaluate_needle.py --model runs/quickstart/hf", "date": "2026-11-29T12:00:00+00:00"},
    )
