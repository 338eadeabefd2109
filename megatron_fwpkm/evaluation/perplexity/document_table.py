"""Losses of every document, what each gains from the memory, and in how many it gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..block_losses import BlockLosses, interval_text, losses_estimate
from ..confidence import Estimate, mean_interval
from ..result_files import csv_text, rounded
from .documents_read import Document
from .loss_record import DocumentRecord

_MOST_SHOWN = 40


@dataclass(frozen=True)
class DocumentRow:
    """Mean loss per token of a document, or its difference to another condition on the same tokens."""

    document: str
    condition: str
    versus: str | None
    tokens: int
    blocks: int
    loss: Estimate

    def flat(self) -> dict[str, Any]:
        """As documents.csv has it."""
        place = {"document": self.document, "condition": self.condition, "versus": self.versus}
        numbers = rounded({"loss": self.loss.mean, "low": self.loss.low, "high": self.loss.high})
        return place | {"tokens": self.tokens, "blocks": self.blocks} | numbers


@dataclass(frozen=True)
class DocumentTable:
    """The rows of all documents, in order."""

    conditions: tuple[str, ...]
    """The measured one, then those it is compared with."""
    rows: tuple[DocumentRow, ...]

    def to_csv(self) -> str:
        """The rows, with a header line."""
        return csv_text([row.flat() for row in self.rows])

    def gaps(self, versus: str) -> list[float]:
        """The difference to another condition, by document."""
        return [row.loss.mean for row in self.rows if row.versus == versus]

    def summary(self) -> list[dict[str, Any]]:
        """Over documents, each counted once, by the condition that is subtracted; as results.json has it."""
        found = []
        for name in self.conditions[1:]:
            gaps, mean = self.gaps(name), mean_interval(self.gaps(name))
            better = sum(gap < 0 for gap in gaps)
            numbers = rounded({"mean_difference": mean.mean, "low": mean.low, "high": mean.high})
            found.append({"versus": name, "documents": len(gaps), "better": better} | numbers)
        return found

    def sentences(self) -> list[str]:
        """The summary in words; nothing for a single document."""
        measured, *others = self.conditions
        return [
            f"{measured} less {name}, every document counted once: {interval_text(mean_interval(gaps), '+')}; "
            f"{sum(gap < 0 for gap in gaps):,} of {len(gaps):,} documents are below zero"
            for name in others
            if len(gaps := self.gaps(name)) > 1
        ]

    def cells(self) -> list[list[str]]:
        """A table of the longest documents in their order, heads first: the measured loss, and less the others."""
        measured, *others = self.conditions
        lines = [["document", "tokens", f"loss, {measured}", *(f"{measured} less {name}" for name in others)]]
        ours = [row for row in self.rows if row.condition == measured]
        per_document = 1 + len(others)
        groups = [ours[start : start + per_document] for start in range(0, len(ours), per_document)]
        longest = sorted(range(len(groups)), key=lambda number: -groups[number][0].tokens)[:_MOST_SHOWN]
        for number in sorted(longest):
            loss, *gaps = groups[number]
            shown = [interval_text(gap.loss, "+") for gap in gaps]
            lines.append([loss.document, f"{loss.tokens:,}", interval_text(loss.loss), *shown])
        return lines


def tabulate_documents(read: Mapping[str, Sequence[DocumentRecord]], documents: Sequence[Document]) -> DocumentTable:
    """The table of documents that were read in some conditions, the measured one first."""
    measured, *others = read
    rows = []
    for number, document in enumerate(documents):
        losses: dict[str, BlockLosses] = {name: records[number].losses for name, records in read.items()}
        rows.append(DocumentRow(document.name, measured, None, *losses_estimate([losses[measured]])))
        for name in others:
            gap = losses_estimate([losses[measured]], [losses[name]])
            rows.append(DocumentRow(document.name, measured, name, *gap))
        rows += [DocumentRow(document.name, name, None, *losses_estimate([losses[name]])) for name in others]
    return DocumentTable(tuple(read), tuple(rows))
