"""The report of a needle evaluation: the heatmap, the table, what protocol and controls mean."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ...config.counted_things import count_things
from ..report_page import ReportPart, Section, definition_list, embedded_picture
from .answers import NOTHING_TO_WRITE
from .recall import Recall
from .recall_curve import draw_curve
from .report_panels import panels
from .results import NeedleResults
from .settings import CHUNK_MEANINGS, CONTROL_MEANINGS, NO_MEMORY, PROTOCOL_MEANINGS, RESET_MEANINGS


def _text_names(paths: Sequence[str]) -> str:
    """The haystack in a heading."""
    return Path(paths[0]).name.partition(".")[0] if len(paths) == 1 else count_things(len(paths), "text")


def needle_part(results: NeedleResults) -> ReportPart:
    """The heatmap, the table, what protocol and controls mean, settings and provenance."""
    controls = definition_list((name, CONTROL_MEANINGS[name]) for name in results.controls)
    return ReportPart(
        f"needles, {results.settings.protocol}",
        f"Needle recall: {results.model_name}",
        f"Recall of {results.model_name}: {results.settings.protocol}, {_text_names(results.settings.haystack)}",
        f"{count_things(results.settings.needles, 'fact')} hidden in every context; the model is asked for one. An "
        "answer is correct if every token of the value is correct, with greedy decoding.",
        (
            _heatmap(results),
            _curve(results),
            _recall_by_length(results),
            _protocol(results),
            _contexts(results),
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


def _curve(results: NeedleResults) -> Section:
    picture = embedded_picture(draw_curve(results, "svg"), "Exact match over context length")
    return Section("Recall over length", picture)


def _recall_by_length(results: NeedleResults) -> Section:
    reach = "the whole context" if results.reach is None else f"{results.reach} tokens through all layers"
    token = "" if results.chance_token is None else f", {results.chance_token:.2g} for one token"
    note = (
        "Brackets: Wilson 95&nbsp;% confidence interval. “Beyond window”: only contexts in which attention cannot "
        f"reach the needle from the question (it sees {reach}). “Of candidates”: the right value is more likely than "
        "every other value of the context and some that were not shown; in grey, the level of guessing. Chance level: "
        f"{results.chance_exact:.2g} for a whole value{token}."
    )
    return Section("Recall by context length", f'{_table(results)}\n<p class="pale">{note}</p>')


def _protocol(results: NeedleResults) -> Section:
    settings = results.settings
    if results.measured == NO_MEMORY:
        meaning = "The model has no fast-weight memory: it reads the context once and answers with attention alone."
    else:
        again = "goes on" if settings.protocol == "streaming" else "begins anew"
        reads = f" Before it reads a context again, attention {again}." if results.reads != (1,) else ""
        meaning = (
            f"{PROTOCOL_MEANINGS[settings.protocol]} {CHUNK_MEANINGS[settings.chunk]} "
            f"{RESET_MEANINGS[settings.memory_reset]}{reads}"
        )
    return Section("Protocol", f"<p><b>{escape(settings.protocol)}.</b> {escape(meaning)}</p>")


def _contexts(results: NeedleResults) -> Section:
    counts = results.contexts
    bos = str(counts.least_bos) + (f" to {counts.most_bos}" if counts.most_bos != counts.least_bos else "")
    sizes = ", ".join(f"{low:,}" + (f" to {high:,}" if high != low else "") for low, high in counts.tokens.values())
    pairs = [("not read to the end", str(counts.truncated)), ("BOS tokens in each", bos), ("tokens", sizes)]
    return Section("Contexts", definition_list(pairs))


def _shown_settings(results: NeedleResults) -> dict[str, object]:
    settings, needle = results.settings, results.settings.needle
    words = f"{count_things(needle.key_words, 'key word')}, {count_things(needle.value_words, 'value word')}"
    likeness = f", {settings.distractor_kind}" if settings.distractors else ""
    return {
        "model": settings.model,
        "haystack": ", ".join(settings.haystack),
        "needle": f"{needle.template} ({words if settings.needle_kind == 'words' else settings.needle_kind})",
        "needles per context": settings.needles,
        "distractors per context": f"{settings.distractors}{likeness}",
        "contexts per length": f"{settings.described_samples()}; spread over {count_things(settings.depths, 'depth')}",
        "seed": settings.seed,
        "reads": " ".join(map(str, results.reads)),
        "chunk": settings.chunk,
        "reset": NOTHING_TO_WRITE if results.measured == NO_MEMORY else settings.memory_reset,
        "reading speed": ", ".join(
            f"{speed:,.0f} tokens/s at {length:,} {settings.length_unit}"
            for length, speed in results.tokens_per_second.items()
        ),
    }


_MAIN = ' class="main"'


def _wrapped(cell: str) -> str:
    """One box, so that a cell that is laid out in a row stays together."""
    return f"<div>{cell}</div>"


def _table(results: NeedleResults) -> str:
    controls, settings = results.controls, results.settings
    heads = ["context", "exact match", "beyond window", "first token", "token accuracy", "of candidates"]
    heads += [control.replace("-", " ") for control in controls]
    lines = []
    for length, reads in itertools.product(sorted(settings.lengths), results.reads):
        main = results.find(results.measured, length, reads=reads)
        cells = [
            _exact(main),
            _exact(results.find(results.measured, length, where="beyond window", reads=reads)),
            f"{main.first_token:.2f}",
            f"{main.token_accuracy:.2f}",
            f'{main.candidate_accuracy:.2f} <span class="pale">{main.candidate_chance:.2f}</span>',
            *(
                f"{_exact(results.find(name, length, reads=reads))}{_beyond(results, name, length, reads)}"
                for name in controls
            ),
        ]
        named = [
            f'<td{_MAIN * (head == heads[1])} data-label="{escape(head)}">{_wrapped(cell)}</td>'
            for head, cell in zip(heads[1:], cells, strict=True)
        ]
        again = f", {count_things(reads, 'read')}" if results.reads != (1,) else ""
        lines.append(f"<tr><td>{length:,} {settings.length_unit}{again}</td>{''.join(named)}</tr>")
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f'<table class="summary"><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _exact(recall: Recall) -> str:
    if not recall.samples:
        return "–"
    interval = f"[{recall.low:.2f}, {recall.high:.2f}] of {recall.samples}"
    return f'{recall.exact_match:.2f} <span class="pale">{interval}</span>'


def _beyond(results: NeedleResults, control: str, length: int, reads: int) -> str:
    """What attention alone recalls if it cannot reach the needle: this part of the control must be at chance level."""
    if control == "never-shown":
        return ""
    beyond = results.find(control, length, where="beyond window", reads=reads)
    return f'<span class="pale">beyond window {beyond.exact_match:.2f}</span>' if beyond.samples else ""
