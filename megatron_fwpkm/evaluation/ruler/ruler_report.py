"""The report of a RULER evaluation: the picture, a table per condition, published rows, what was read."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from ...config.counted_things import count_things
from ..report_page import ReportPart, Section, definition_list, embedded_picture, summary_table
from .published_rows import PUBLISHED_ROWS
from .ruler_picture import draw_scores
from .ruler_results import MEAN, RulerResults, effective_sentence, score_cells
from .ruler_settings import RULER_CONDITIONS, SentenceRule

_SENTENCE_RULES: dict[SentenceRule, str] = {
    "punkt": "NLTK's Punkt, as RULER does it",
    "marks": "at punctuation marks, so that samples with a haystack differ from RULER's",
}


def ruler_report(results: RulerResults, provenance: Mapping[str, str]) -> ReportPart:
    """What is shown, and where the numbers come from."""
    settings = results.settings
    tables = [Section(f"Score by task: {name}", _table(results, name)) for name in results.conditions]
    left_out = "".join(
        f'<p class="pale">Not measured: {escape(", ".join(names))}, which need {escape(flag)}.</p>'
        for flag, names in results.left_out.items()
    )
    return ReportPart(
        "ruler",
        f"RULER: {results.model_name}",
        f"RULER of {results.model_name}",
        f"{count_things(len(results.tasks), 'task')}, {count_things(settings.samples, 'sample')} of each per length. "
        "The score of a sample is the share of its right answers that the generated text contains.",
        (
            Section(
                "Scores and their means",
                f"{embedded_picture(draw_scores(results, 'svg'), 'Scores by task and length')}\n"
                f"<p>{escape(effective_sentence(results))}</p>\n{left_out}",
            ),
            *tables,
            Section("Beside published scores", _published(results)),
            Section("Conditions", definition_list((name, RULER_CONDITIONS[name]) for name in results.conditions)),
            Section("Prompts", _prompts(results)),
        ),
        results.causality,
        {
            "model": settings.model,
            "lengths": ", ".join(f"{length:,}" for length in settings.lengths),
            "haystack": ", ".join(settings.haystack) or "none",
            "sentences": _SENTENCE_RULES[settings.sentences],
            "questions": ", ".join(filter(None, (settings.squad, settings.hotpotqa))) or "none",
            "seed": settings.seed,
            "reset": "the initial memory before every sample",
            "decoding": "greedy, up to RULER's number of tokens per task",
            "threshold": f"{settings.effective_threshold:g}",
        },
        provenance,
    )


def _table(results: RulerResults, condition: str) -> str:
    note = "Percent, with Wilson's 95&nbsp;% interval; the mean is over all samples of all tasks."
    empty = sum(results.find(condition, MEAN, length).empty for length in results.settings.lengths)
    return f'{summary_table(score_cells(results, condition))}\n<p class="pale">{note} Empty answers: {empty}.</p>'


def _published(results: RulerResults) -> str:
    lengths = sorted({*results.settings.lengths, *(length for row in PUBLISHED_ROWS for length, _ in row.at)})
    ours = {n: f"{results.find(results.measured, MEAN, n).score:.1f}" for n in results.settings.lengths}
    measured = f"{results.model_name} ({results.measured}, {count_things(len(results.tasks), 'task')})"
    lines = [[measured, "–", *(ours.get(length, "–") for length in lengths), "this evaluation"]]
    for row in PUBLISHED_ROWS:
        scores = {length: f"{score:.1f}" for length, score in row.at}
        mean = "–" if row.mean is None else f"{row.mean:.1f}"
        lines.append([row.model, mean, *(scores.get(length, "–") for length in lengths), row.source])
    heads = ["model", "mean, 4K to 131K", *(f"{length:,}" for length in lengths), "source"]
    note = (
        "Published means are of all 13 tasks with RULER's own essays and questions; a mean of fewer tasks, or of other "
        "texts, says something else."
    )
    return f'{summary_table([heads, *lines])}\n<p class="pale">{note}</p>'


def _prompts(results: RulerResults) -> str:
    heads = ["length", "samples", "tokens read", "with BOS", "over length with BOS", "cut off"]
    lines = [
        [
            f"{one.length:,}", str(one.samples), f"{one.least_tokens:,} to {one.most_tokens:,}", str(one.with_bos),
            str(one.over_length), str(one.cut),
        ]
        for one in results.counts
    ]  # fmt: skip
    return summary_table([heads, *lines])
