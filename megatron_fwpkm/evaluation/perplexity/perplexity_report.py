"""The report of a perplexity evaluation."""

from __future__ import annotations

from html import escape

from ...config.counted_things import count_things
from ..report_page import ReportPart, Section, definition_list, embedded_picture, summary_table
from .gate_table import gate_cells
from .loss_picture import draw_losses
from .loss_table import PerplexityResults, condition_cells, position_cells, source_cells
from .perplexity_settings import CONDITION_MEANINGS, READING_MEANINGS, RESET_MEANINGS, PerplexitySettings


def losses_part(results: PerplexityResults) -> ReportPart:
    """The picture, the tables, what the conditions mean, settings and provenance."""
    settings, tokens = results.settings, results.find(results.conditions[0]).tokens
    meanings = {name: CONDITION_MEANINGS[name] for name in results.conditions}
    meanings["between documents"] = RESET_MEANINGS[settings.memory_reset]
    meanings["reading"] = READING_MEANINGS[settings.reading]
    count = len({row.document for row in results.documents.rows})
    return ReportPart(
        "perplexity",
        f"Perplexity: {results.model_name}",
        f"Perplexity of {results.model_name}",
        f"{count_things(count, 'document')}, {count_things(tokens, 'predicted token')}. Every token but the first of a "
        "document is predicted from all before it.",
        (*_sections(results), Section("Conditions", definition_list(meanings.items()))),
        causality=results.causality,
        settings=_shown_settings(settings) | {
            "reading speed": ", ".join(f"{name} {v:,.0f} tokens/s" for name, v in results.tokens_per_second.items()),
        },
        provenance=results.provenance,
    )  # fmt: skip


def _sections(results: PerplexityResults) -> list[Section]:
    note = (
        f"Brackets: 95 % intervals, which take blocks of {results.settings.block:,} tokens as independent. "
        "Differences are of the same tokens; below zero the first condition predicts better."
    )
    found = [
        Section("Loss by position", embedded_picture(draw_losses(results, "svg"), "Loss by position")),
        Section("All positions", summary_table(condition_cells(results))),
    ]
    if results.sources():
        weighing = "Every token counts alike in the numbers of all sources."
        if results.weights is not None:
            weighing = "Numbers of all sources are means over the sources by their weights, as in a blend of datasets."
        found.append(Section("By source", summary_table(source_cells(results)) + _pale(weighing)))
    found.append(Section("By position", summary_table(position_cells(results)) + _pale(note)))
    sentences = "".join(f"<p>{escape(sentence)}.</p>" for sentence in results.documents.sentences())
    found.append(Section("By document", sentences + summary_table(results.documents.cells()) + _shown(results)))
    gates = gate_cells(results.gates, results.conditions[0])
    if gates:
        meaning = (
            "The mean gate of each memory: 1 where a layer passes on what was retrieved, 0 where it passes on the "
            "token's own value."
        )
        found.append(Section("Gates by position", summary_table(gates) + _pale(meaning)))
    return found


def _shown(results: PerplexityResults) -> str:
    """That a table has not all documents, where it has not."""
    shown, count = len(results.documents.cells()) - 1, len({row.document for row in results.documents.rows})
    return _pale(f"The longest {shown} of {count:,} documents; documents.csv has all.") if shown < count else ""


def _pale(text: str) -> str:
    return f'\n<p class="pale">{escape(text)}</p>'


def _shown_settings(settings: PerplexitySettings) -> dict[str, object]:
    optional = {
        "baseline": settings.baseline,
        "text": ", ".join(settings.text),
        "weights of the texts": " ".join(f"{weight:g}" for weight in settings.text_weights),
        "datasets": " ".join(settings.data_path),
        "documents of a dataset": settings.documents,
        "read first": ", ".join(settings.read_first),
    }
    length = "all" if settings.length is None else f"at most {settings.length:,}"
    return {
        "model": settings.model,
        **{name: value for name, value in optional.items() if value},
        "tokens of a document": length,
    }
