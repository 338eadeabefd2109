"""One page that shows an evaluation and explains it; it needs no other file and no network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from .recall import Recall
from .report_panels import panels
from .results import NeedleResults
from .settings import CONTROL_MEANINGS, MEMORY_ON, PROTOCOL_MEANINGS

_TEMPLATE = Path(__file__).with_name("report.html")


def render_report(results: NeedleResults) -> str:
    """HTML with the heatmap, the table, what protocol and controls mean, settings and provenance."""
    settings = results.settings
    reach = "the whole context" if results.reach is None else f"{results.reach} tokens through all layers"
    needle = settings.needle
    shown = {
        "model": settings.model,
        "haystack": ", ".join(settings.haystack),
        "needle": f"{needle.template} ({needle.key_words} key words, {needle.value_words} value words)",
        "needles per context": settings.needles,
        "contexts per length": f"{settings.samples}, spread over {settings.depths} depths",
        "seed": settings.seed,
        "reset": "the initial memory before every context",
        "reading speed": ", ".join(
            f"{speed:,.0f} tokens/s at {length:,}" for length, speed in results.tokens_per_second.items()
        ),
    }
    drawn, note = panels(results)
    return Template(_TEMPLATE.read_text()).substitute(
        model=escape(results.model_name),
        needles=settings.needles,
        panels=drawn,
        panels_note=escape(note),
        table=_table(results),
        reach=escape(f"it sees {reach}"),
        chance_exact=f"{results.chance_exact:.2g}",
        chance_token=f"{results.chance_token:.2g}",
        protocol=escape(settings.protocol),
        protocol_meaning=escape(PROTOCOL_MEANINGS[settings.protocol]),
        controls=_definitions((name, CONTROL_MEANINGS[name]) for name in settings.controls) or "<dd>None ran.</dd>",
        causality=_causality(results),
        settings=_definitions((name, str(value)) for name, value in shown.items()),
        provenance=_definitions(results.provenance.items()),
    )


_MAIN = ' class="main"'


def _wrapped(cell: str) -> str:
    """One box, so that a cell that is laid out in a row stays together."""
    return f"<div>{cell}</div>"


def _table(results: NeedleResults) -> str:
    controls = results.settings.controls
    heads = ["context", "exact match", "beyond window", "first token", "token"]
    heads += [control.replace("-", " ") for control in controls]
    lines = []
    for length in sorted(results.settings.lengths):
        main = results.find(MEMORY_ON, length)
        beyond = results.find(MEMORY_ON, length, where="beyond window")
        cells = [
            _exact(main),
            _exact(beyond),
            f"{main.first_token:.2f}",
            f"{main.token_accuracy:.2f}",
            *(f"{_exact(results.find(name, length))}{_beyond(results, name, length)}" for name in controls),
        ]
        named = [
            f'<td{_MAIN * (head == heads[1])} data-label="{escape(head)}">{_wrapped(cell)}</td>'
            for head, cell in zip(heads[1:], cells, strict=True)
        ]
        lines.append(f"<tr><td>{length:,} tokens</td>{''.join(named)}</tr>")
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f'<table class="recall"><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _exact(recall: Recall) -> str:
    if not recall.samples:
        return "–"
    interval = f"[{recall.low:.2f}, {recall.high:.2f}] of {recall.samples}"
    return f'{recall.exact_match:.2f} <span class="pale">{interval}</span>'


def _beyond(results: NeedleResults, control: str, length: int) -> str:
    """What attention alone recalls where it cannot reach the needle: the part of the control that must be at chance."""
    if control == "never-shown":
        return ""
    beyond = results.find(control, length, where="beyond window")
    return f'<span class="pale">beyond window {beyond.exact_match:.2f}</span>' if beyond.samples else ""


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)


def _causality(results: NeedleResults) -> str:
    check = results.causality
    if check is None:
        return ""
    verdict, words = ("passed", "Passed") if check.passed else ("failed", "FAILED, these numbers cannot be trusted")
    before = "identical bit for bit" if check.before_identical else "different"
    after = "different" if check.after_differs else "identical, so the change reached nothing"
    return (
        f'<h2>Causality</h2><p class="{verdict}">{words}: token {check.changed} of a context was changed; logits '
        f"before it are {before}, logits after it {after}.</p>"
    )
