"""The report of a needle evaluation: the heatmap, the table, what protocol and controls mean."""

from __future__ import annotations

from html import escape

from ...config.counted_things import count_things
from ..report_page import ReportPart, Section, definition_list
from .answers import NOTHING_TO_WRITE
from .recall import Recall
from .report_panels import panels
from .results import NeedleResults
from .settings import CONTROL_MEANINGS, NO_MEMORY, PROTOCOL_MEANINGS


def needle_part(results: NeedleResults) -> ReportPart:
    """The heatmap, the table, what protocol and controls mean, settings and provenance."""
    controls = definition_list((name, CONTROL_MEANINGS[name]) for name in results.controls)
    return ReportPart(
        "needles",
        f"Needle recall: {results.model_name}",
        f"Long-context recall of {results.model_name}",
        f"{count_things(results.settings.needles, 'fact')} hidden in every context; the model is asked for one. An "
        "answer is correct if every token of the value is correct, with greedy decoding.",
        (
            _heatmap(results),
            _recall_by_length(results),
            _protocol(results),
            Section("Controls", controls if results.controls else "<dl><dd>No controls were run.</dd></dl>"),
        ),
        causality=results.causality,
        settings=_shown_settings(results),
        provenance=results.provenance,
    )


def _heatmap(results: NeedleResults) -> Section:
    drawn, note = panels(results)
    html = f'<div class="panels">{drawn}</div>\n<p class="pale">{escape(note)}</p>'
    return Section("Exact match by needle depth and context length", html)


def _recall_by_length(results: NeedleResults) -> Section:
    reach = "the whole context" if results.reach is None else f"{results.reach} tokens through all layers"
    note = (
        "Brackets: Wilson 95&nbsp;% confidence interval. “Beyond window”: only contexts in which attention cannot "
        f"reach the needle from the question (it sees {reach}). Chance level: {results.chance_exact:.2g} for a whole "
        f"value, {results.chance_token:.2g} for one token."
    )
    return Section("Recall by context length", f'{_table(results)}\n<p class="pale">{note}</p>')


def _protocol(results: NeedleResults) -> Section:
    protocol = results.settings.protocol
    meaning = f"{PROTOCOL_MEANINGS[protocol]} Every context starts from the model's initial memory."
    if results.measured == NO_MEMORY:
        meaning = "The model has no fast-weight memory: it reads the context once and answers with attention alone."
    return Section("Protocol", f"<p><b>{escape(protocol)}.</b> {meaning}</p>")


def _shown_settings(results: NeedleResults) -> dict[str, object]:
    settings, needle = results.settings, results.settings.needle
    return {
        "model": settings.model,
        "haystack": ", ".join(settings.haystack),
        "needle": f"{needle.template} ({count_things(needle.key_words, 'key word')}, "
        f"{count_things(needle.value_words, 'value word')})",
        "needles per context": settings.needles,
        "contexts per length": f"{settings.described_samples()}; spread over {count_things(settings.depths, 'depth')}",
        "seed": settings.seed,
        "reset": NOTHING_TO_WRITE if results.measured == NO_MEMORY else "the initial memory before every context",
        "reading speed": ", ".join(
            f"{speed:,.0f} tokens/s at {length:,}" for length, speed in results.tokens_per_second.items()
        ),
    }


_MAIN = ' class="main"'


def _wrapped(cell: str) -> str:
    """One box, so that a cell that is laid out in a row stays together."""
    return f"<div>{cell}</div>"


def _table(results: NeedleResults) -> str:
    controls = results.controls
    heads = ["context", "exact match", "beyond window", "first token", "token accuracy"]
    heads += [control.replace("-", " ") for control in controls]
    lines = []
    for length in sorted(results.settings.lengths):
        main = results.find(results.measured, length)
        beyond = results.find(results.measured, length, where="beyond window")
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
    return f'<table class="summary"><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _exact(recall: Recall) -> str:
    if not recall.samples:
        return "–"
    interval = f"[{recall.low:.2f}, {recall.high:.2f}] of {recall.samples}"
    return f'{recall.exact_match:.2f} <span class="pale">{interval}</span>'


def _beyond(results: NeedleResults, control: str, length: int) -> str:
    """What attention alone recalls if it cannot reach the needle: this part of the control must be at chance level."""
    if control == "never-shown":
        return ""
    beyond = results.find(control, length, where="beyond window")
    return f'<span class="pale">beyond window {beyond.exact_match:.2f}</span>' if beyond.samples else ""
