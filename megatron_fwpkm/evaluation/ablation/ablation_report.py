"""The report of an ablation: a single page."""

from __future__ import annotations

import base64
from html import escape

from ...config.counted_things import count_things
from ..report_page import Section, definition_list, render_page
from .ablation_picture import draw_ablation
from .ablation_settings import AblationOptions
from .ablation_table import AblationResults, cells_of
from .grid import command_words


def render_ablation(results: AblationResults, options: AblationOptions) -> str:
    """HTML with the picture, the table, what every choice sets, settings and provenance."""
    grid, seeds = results.grid, sorted({record.seed for record in results.records})
    picture = base64.b64encode(draw_ablation(results, "svg")).decode()
    image = f'<img alt="Gaps by position" style="width:100%" src="data:image/svg+xml;base64,{picture}">'
    note = "± is half of a 95&nbsp;% Student interval over seeds; gaps are between models of the same seed."
    choices = [
        (f"{axis}: {name}", " ".join(command_words(flags)) or "nothing")
        for axis, one in grid.axes.items()
        for name, flags in one.items()
    ]
    left = f" The budget left out {count_things(results.left_out, 'model')}." if results.left_out else ""
    equal = "iterations" if grid.cpu_seconds is None else f"{grid.cpu_seconds:,.0f} CPU seconds of training"
    return render_page(
        "Ablation",
        f"Ablation against {grid.reference}",
        f"{count_things(len(results.records), 'model')}, {count_things(len(seeds), 'seed')}, at equal {equal}.{left}",
        [
            Section("Loss by position", image),
            Section("Table", f'{_table(results)}\n<p class="pale">{note}</p>'),
            Section("Choices", definition_list(choices)),
        ],
        causality=None,
        settings={
            "grid": options.grid,
            "base": str(grid.base),
            "training data": options.data_path,
            "held-out text": ", ".join(options.text),
            "tokens of a document": f"at most {options.length:,}",
        },
        provenance=results.provenance,
    )


def _table(results: AblationResults) -> str:
    rows = [cells_of(results, row) for row in results.rows]
    top = "".join(f"<th>{escape(head)}</th>" for head in rows[0])
    body = "".join(
        "<tr>" + "".join(f'<td data-label="{escape(head)}">{escape(cell)}</td>' for head, cell in row.items()) + "</tr>"
        for row in rows
    )
    return f'<table class="summary"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
