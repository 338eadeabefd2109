"""The report of a perplexity evaluation: a single page."""

from __future__ import annotations

from ...config.counted_things import count_things
from ..report_page import ReportPart, Section, definition_list, embedded_picture, summary_table
from .loss_picture import draw_losses
from .loss_table import PerplexityResults, condition_cells, position_cells
from .perplexity_settings import CONDITION_MEANINGS, RESET_MEANINGS


def losses_part(results: PerplexityResults) -> ReportPart:
    """The picture, the tables, what the conditions mean, settings and provenance."""
    settings, tokens = results.settings, results.find(results.conditions[0]).tokens
    conditions, positions = condition_cells(results), position_cells(results)
    note = (
        f"Brackets: 95&nbsp;% intervals, which take blocks of {settings.block:,} tokens as independent. Differences "
        "are of the same tokens; below zero the first condition predicts better."
    )
    meanings = {name: CONDITION_MEANINGS[name] for name in results.conditions}
    meanings["between documents"] = RESET_MEANINGS[settings.memory_reset]
    return ReportPart(
        "perplexity",
        f"Perplexity: {results.model_name}",
        f"Perplexity of {results.model_name}",
        f"{count_things(len(settings.text), 'document')}, {count_things(tokens, 'predicted token')}. Every token but "
        "the first of a document is predicted from all before it.",
        (
            Section("Loss by position", embedded_picture(draw_losses(results, "svg"), "Loss by position")),
            Section("All positions", summary_table(conditions[0], conditions[1:])),
            Section("By position", f'{summary_table(positions[0], positions[1:])}\n<p class="pale">{note}</p>'),
            Section("Conditions", definition_list(meanings.items())),
        ),
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
