"""The page of a memory trace: an answer whose tokens show the text that they came from, and tables of all samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ...config.counted_things import count_things
from ..report_page import ReportPart, Section, embedded_picture, summary_table
from ..trace.writer_record import WRITERS_PER_SLOT
from .memory_trace_settings import MODE_MEANINGS
from .trace_picture import draw_trace
from .trace_results import FEW, MemoryTraceResults
from .trace_tables import recall_rows, right_rows, share_rows, token_rows, usage_rows

_VIEW = Path(__file__).with_name("trace_view.html")
MOST_SLOTS = 64
"""Slots per answer token and layer in the page, heaviest first; trace.json and reads.csv have all."""


def report_part(results: MemoryTraceResults) -> ReportPart:
    """What the page shows."""
    sections = [
        _answer(results),
        Section("Where most of each token came from", summary_table(token_rows(results.detail))),
    ]
    if results.knows_answers:
        sections.append(_recall(results))
    sections += [_usage(results), _method(results)]
    detail = results.detail
    return ReportPart(
        "memory trace",
        f"Memory trace: {results.model_name}",
        f"A look inside the memory of {results.model_name}",
        f"{count_things(len(results.records), 'sample')}, the context of the one shown has "
        f"{detail['context_tokens']:,} tokens: which slots its answer reads, and which tokens of the text wrote them.",
        tuple(sections),
        results.causality,
        _settings(results),
        results.provenance,
    )


def safe_json(values: Mapping[str, Any]) -> str:
    """JSON that no browser takes for the end of a script, or for markup."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _answer(results: MemoryTraceResults) -> Section:
    detail = results.detail
    tokens = [
        {**token, "layers": [{**layer, "slots": layer["slots"][:MOST_SLOTS]} for layer in token["layers"]]}
        for token in detail["tokens"]
    ]
    expected = "" if detail["expected"] is None else f" The right answer is “{escape(detail['expected'])}”."
    lead = (
        f"<p>Choose a token of the answer to see the text that it came from.{expected} The marked token is what the "
        "slot holds, the underlined one is the token that wrote it.</p>"
    )
    view = _VIEW.read_text(encoding="utf-8").replace("@DATA@", safe_json({**detail, "tokens": tokens}))
    return Section("The answer and its sources", lead + view)


def _recall(results: MemoryTraceResults) -> Section:
    note = (
        f"recall@1: the token before the right answer is among the last writers of the heaviest slot that was read; "
        f"@{FEW} and @all: of one of so many. Brackets: Wilson 95&nbsp;% interval."
    )
    html = (
        f"<p>Exact match: {escape(str(results.exact()))}.</p>{summary_table(recall_rows(results))}"
        f'<p class="pale">{note}</p>{summary_table(right_rows(results))}'
        f"<p>The share of a read that is attributed to the right token, and whether the answer token is right:</p>"
        f"{summary_table(share_rows(results))}"
    )
    return Section("Does the right slot give the right answer?", html)


def _usage(results: MemoryTraceResults) -> Section:
    note = (
        "A slot has several writers if several tokens wrote it within one read of the context. The KL divergence is "
        "that of the weights with which slots were read from equal use of all slots."
    )
    picture = embedded_picture(draw_trace(results, "svg"), "Sources by position, usage of slots, ages of slots")
    return Section("How the slots are used", f'{summary_table(usage_rows(results))}<p class="pale">{note}</p>{picture}')


def _method(results: MemoryTraceResults) -> Section:
    mode = results.settings.mode
    html = (
        f"<p><b>{escape(mode)}.</b> {MODE_MEANINGS[mode]} The context is read "
        f"{count_things(results.settings.reads, 'time')}.</p><p>A read is attributed at the moment of the read, to "
        "tokens whose chunk has been written by then. The weight of a slot is divided among its last "
        f"{WRITERS_PER_SLOT} writers by what later writes leave of earlier ones, which is an estimate. The answer is "
        "also the work of attention, which is not traced.</p>"
    )
    return Section("Method", html)


def _settings(results: MemoryTraceResults) -> dict[str, object]:
    settings, shown = results.settings, results.records[0]
    values: dict[str, object] = {"model": settings.model, "mode": settings.mode, "reads of the context": settings.reads}
    if settings.text is not None:
        return values | {"text": settings.text, "prompt": settings.prompt}
    return values | {
        "haystack": ", ".join(settings.haystack), "context length": f"{settings.length:,} tokens",
        "needle": settings.needle.template, "needles per context": settings.needles, "seed": settings.seed,
        "samples": f"{settings.index} to {settings.index + settings.samples - 1}; shown: {shown.index}, at depth "
        f"{shown.depth:.0%}",
    }  # fmt: skip
