"""The report of a perplexity evaluation: a single page."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

from ...config.counted_things import count_things
from ..report_page import Section, definition_list, render_page
from .loss_picture import draw_losses
from .loss_table import PerplexityResults, Span, interval_text
from .perplexity_settings import CONDITION_MEANINGS, RESET_MEANINGS


def render_losses(results: PerplexityResults) -> str:
    """HTML with the picture, the tables, what the conditions mean, settings and provenance."""
    settings, tokens = results.settings, results.find(results.conditions[0]).tokens
    picture = base64.b64encode(draw_losses(results, "svg")).decode()
    image = f'<img alt="Loss by position" style="width:100%" src="data:image/svg+xml;base64,{picture}">'
    note = (
        f"Brackets: 95&nbsp;% intervals, which take blocks of {settings.block:,} tokens as independent. Differences "
        "are of the same tokens; below zero the first condition predicts better."
    )
    meanings = {name: CONDITION_MEANINGS[name] for name in results.conditions}
    meanings["between documents"] = RESET_MEANINGS[settings.memory_reset]
    return render_page(
        f"Perplexity: {results.model_name}",
        f"Perplexity of {results.model_name}",
        f"{count_things(len(settings.text), 'document')}, {count_things(tokens, 'predicted token')}. Every token but "
        "the first of a document is predicted from all before it.",
        [
            Section("Loss by position", image),
            Section("All positions", _summary(results)),
            Section("By position", f'{_by_position(results)}\n<p class="pale">{note}</p>'),
            Section("Conditions", definition_list(meanings.items())),
        ],
        causality=results.causality,
        settings={
            "model": settings.model,
            **({"baseline": settings.baseline} if settings.baseline is not None else {}),
            "text": ", ".join(settings.text),
            "tokens of a document": "all" if settings.length is None else f"at most {settings.length:,}",
            "reading speed": ", ".join(f"{name} {v:,.0f} tokens/s" for name, v in results.tokens_per_second.items()),
        },
        provenance=results.provenance,
    )


def _summary(results: PerplexityResults) -> str:
    rows = []
    for name in results.conditions:
        loss = results.find(name).loss
        rows.append([name, interval_text(loss), f"{math.exp(loss.mean):.3f}", f"{results.bits_per_byte(name):.4f}"])
    return _table(["condition", "loss", "perplexity", "bits per byte"], rows)


def _by_position(results: PerplexityResults) -> str:
    measured, others = results.conditions[0], results.conditions[1:]
    rows = []
    for span in (*results.spans(), Span(0)):
        own = results.find(measured, None, span)
        gaps = [interval_text(results.find(measured, name, span).loss, sign="+") for name in others]
        rows.append([str(span), f"{own.tokens:,}", interval_text(own.loss), *gaps])
    return _table(["positions", "tokens", f"loss, {measured}", *(f"{measured} less {name}" for name in others)], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><td>{escape(first)}</td>"
        + "".join(
            f'<td data-label="{escape(head)}">{escape(cell)}</td>' for head, cell in zip(heads[1:], rest, strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    return f'<table class="summary"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
