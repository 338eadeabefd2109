"""The report of an ablation: a single page."""

from __future__ import annotations

from ...config.counted_things import count_things
from ..report_page import ReportPart, Section, definition_list, embedded_picture, summary_table
from .ablation_picture import draw_ablation
from .ablation_settings import AblationOptions
from .ablation_table import AblationResults, cells_of
from .grid import command_words


def ablation_part(results: AblationResults, options: AblationOptions) -> ReportPart:
    """The picture, the table, what every choice sets, settings and provenance."""
    grid, seeds = results.grid, sorted({record.seed for record in results.records})
    rows = [cells_of(results, row) for row in results.rows]
    table = summary_table([list(rows[0]), *(list(row.values()) for row in rows)])
    note = "± is half of a 95&nbsp;% Student interval over seeds; gaps are between models of the same seed."
    choices = [
        (f"{axis}: {name}", " ".join(command_words(flags)) or "nothing")
        for axis, one in grid.axes.items()
        for name, flags in one.items()
    ]
    left = f" The budget left out {count_things(results.left_out, 'model')}." if results.left_out else ""
    equal = "iterations" if grid.cpu_seconds is None else f"{grid.cpu_seconds:,.0f} CPU seconds of training"
    return ReportPart(
        "ablation",
        "Ablation",
        f"Ablation against {grid.reference}",
        f"{count_things(len(results.records), 'model')}, {count_things(len(seeds), 'seed')}, at equal {equal}.{left}",
        (
            Section("Loss by position", embedded_picture(draw_ablation(results, "svg"), "Gaps by position")),
            Section("Table", f'{table}\n<p class="pale">{note}</p>'),
            Section("Choices", definition_list(choices)),
        ),
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
