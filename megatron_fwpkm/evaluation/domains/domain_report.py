"""The report of a domains evaluation."""

from __future__ import annotations

from ...config.counted_things import count_things
from ..report_page import ReportPart, Section, definition_list, embedded_picture, summary_table
from .domain_settings import READ_MODE_MEANINGS
from .forgetting import DomainResults, forgetting_cells, matrix_cells
from .forgetting_picture import draw_forgetting


def forgetting_part(results: DomainResults) -> ReportPart:
    """The picture, the matrix, what is forgotten, and how it was measured."""
    settings = results.settings
    matrix, forgotten = matrix_cells(results), forgetting_cells(results)
    note = (
        f"Brackets: 95&nbsp;% intervals, which take blocks of {settings.block:,} tokens as independent. The first two "
        "rows are losses; the others are differences to the initial memory on the same tokens, below zero where "
        "adaptation helps."
    )
    meaning = (
        "Gain: the change of the loss on a domain's held-out text by adaptation up to that domain. Forgotten: how much "
        "of the loss comes back by the end, on the same tokens; above zero where later domains overwrite."
    )
    picture = embedded_picture(draw_forgetting(results, "svg"), "The forgetting matrix")
    return ReportPart(
        "domains",
        f"Domains: {results.model_name}",
        f"What the memory of {results.model_name} keeps of domains",
        f"The memory reads {count_things(len(settings.domains), 'domain')} in turn; no other weight changes. After "
        "each, the loss on the held-out text of all of them is measured.",
        (
            Section("The forgetting matrix", picture),
            Section("In numbers", f'{summary_table(matrix)}\n<p class="pale">{note}</p>'),
            Section("Gained and forgotten", f'{summary_table(forgotten)}\n<p class="pale">{meaning}</p>'),
            Section("While losses are measured", definition_list([(settings.read_mode, _meaning(results))])),
        ),
        causality=results.causality,
        settings={
            "model": settings.model,
            **{f"domain {domain.name}": ", ".join(domain.files) for domain in settings.domains},
            "held out": f"the last {100 * settings.held_out:g} % of every document",
            "tokens adapted to": ", ".join(
                f"{name} {tokens:,}" for name, tokens in zip(settings.names, results.adapt_tokens, strict=True)
            ),
            "tokens measured": ", ".join(f"{name} {results.find(name, 0).tokens:,}" for name in settings.names),
            "reads of a domain": settings.adapt_reads,
            "orders": f"{settings.orders} (seed {settings.seed})",
        },
        provenance=results.provenance,
    )


def _meaning(results: DomainResults) -> str:
    return READ_MODE_MEANINGS[results.settings.read_mode]
