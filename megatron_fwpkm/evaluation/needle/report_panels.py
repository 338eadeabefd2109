"""The heatmap of a report as tables of text, which stay legible on a phone and can be copied."""

from __future__ import annotations

from html import escape

from ...config.plot_style import recall_colour
from .results import NeedleResults
from .settings import short_length

_MOST_COLUMNS = 8
"""Number of columns in which two decimals fit on a phone."""
ALL = "all"
_SUMMARY = ' class="all"'
_NARROW = ' class="narrow"'


def panels(results: NeedleResults) -> tuple[str, str]:
    """A figure per condition and number of reads, and a line that says how to read them."""
    depths, lengths = results.settings.depth_grid(), sorted(results.settings.lengths)
    turned = len(lengths) > max(_MOST_COLUMNS, len(depths) + 1)
    percent = min(len(lengths), len(depths) + 1) > _MOST_COLUMNS
    html = "".join(
        f'<figure class="panel"><figcaption>{escape(results.title(condition, reads))}</figcaption>'
        f"{_table(results, condition, reads, turned, percent)}</figure>"
        for condition, reads in results.panels()
    )
    axes = "Columns are depths, rows are context lengths" if turned else "Columns are context lengths, rows are depths"
    note = f"{axes}. Depth 0 % is the beginning of the context, “{ALL}” combines all depths."
    return html, note + (" Numbers are percentages." if percent else "")


def _table(results: NeedleResults, condition: str, reads: int, turned: bool, percent: bool) -> str:
    lengths = sorted(results.settings.lengths)
    depths = (*results.settings.depth_grid(), None)
    if turned:
        head = [_depth(depth) for depth in depths]
        rows = [(short_length(n), [(n, depth) for depth in depths], False) for n in lengths]
    else:
        head = [short_length(n) for n in lengths]
        rows = [(_depth(depth), [(n, depth) for n in lengths], depth is None) for depth in depths]
    lines = [f"<tr><th></th>{''.join(f'<th>{name}</th>' for name in head)}</tr>"]
    for name, cells, is_summary in rows:
        fractions = [(results.find(condition, n, depth, reads=reads).exact_match, depth is None) for n, depth in cells]
        drawn = "".join(_cell(fraction, percent, summary) for fraction, summary in fractions)
        lines.append(f"<tr{_SUMMARY * is_summary}><th>{name}</th>{drawn}</tr>")
    return f"<table{_NARROW * percent}>{''.join(lines)}</table>"


def _depth(depth: float | None) -> str:
    return ALL if depth is None else f"{100 * depth:.0f} %"


def _cell(fraction: float, percent: bool, summary: bool) -> str:
    background, ink = recall_colour(fraction)
    number = f"{100 * fraction:.0f}" if percent else f"{fraction:.2f}"
    return f'<td{_SUMMARY * summary} style="background:{background};color:{ink}">{number}</td>'
