"""From blocks of losses to numbers: by condition, source and position, and differences of the same tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..block_losses import interval_text, losses_estimate
from ..causality_verdict import CausalityCheck
from ..confidence import Estimate
from ..result_files import aligned, csv_text, json_text, rounded
from .document_table import DocumentTable
from .documents_read import Document
from .gate_table import GateRow
from .loss_record import DocumentRecord
from .perplexity_settings import PerplexitySettings
from .spans import Span, doubling_spans


@dataclass(frozen=True)
class LossRow:
    """Mean loss per token of some positions, or its difference to that of another condition on the same tokens."""

    condition: str
    versus: str | None
    """The condition whose loss is subtracted."""
    source: str | None
    """File or dataset; None for all of them, by their weights."""
    span: Span
    tokens: int
    blocks: int
    loss: Estimate


@dataclass(frozen=True)
class PerplexityResults:
    """A finished evaluation."""

    settings: PerplexitySettings
    model_name: str
    conditions: tuple[str, ...]
    """The measured one, then those it is compared with."""
    weights: Mapping[str, float] | None
    """Of the sources in all numbers of all sources; None where every token counts alike."""
    rows: tuple[LossRow, ...]
    documents: DocumentTable
    gates: tuple[GateRow, ...]
    bytes_per_token: float
    """Of the predicted tokens, by the weights of their sources."""
    tokens_per_second: dict[str, float]
    """By condition, per process."""
    causality: CausalityCheck
    provenance: dict[str, str]
    model_config: dict[str, Any]

    def find(
        self, condition: str, versus: str | None = None, span: Span | None = None, source: str | None = None
    ) -> LossRow:
        """One row, by default that of all positions and sources. Raises KeyError when there is none."""
        wanted = condition, versus, span or Span(0), source
        for row in self.rows:
            if (row.condition, row.versus, row.span, row.source) == wanted:
                return row
        raise KeyError(f"no row for {wanted}")

    def spans(self) -> list[Span]:
        """The parts of the positions, in order."""
        found = (row for row in self.rows if row.condition == self.conditions[0] and row.versus is None)
        return [row.span for row in found if row.source is None][1:]

    def sources(self) -> list[str]:
        """The names of the sources where there are several."""
        found = (row for row in self.rows if row.condition == self.conditions[0] and row.versus is None)
        return [row.source for row in found if row.source is not None]

    def bits_per_byte(self, condition: str) -> float:
        """Code length of the text, whatever the tokenizer."""
        return self.find(condition).loss.mean / math.log(2) / self.bytes_per_token

    def to_json(self) -> str:
        """Everything that another run of the same evaluation gives again, readable."""
        values = {
            "format": "megatron_fwpkm perplexity evaluation 2",
            "model_name": self.model_name,
            "settings": asdict(self.settings),
            "bits_per_byte": {name: round(self.bits_per_byte(name), 6) for name in self.conditions},
            "weights": self.weights,
            "results": [_flat(row) for row in self.rows],
            "documents": self.documents.summary(),
            "gates": [row.flat() for row in self.gates],
            "causality": self.causality.to_json(),
            "model_config": self.model_config,
        }
        return json_text(values)

    def to_csv(self) -> str:
        """The rows, with a header line."""
        return csv_text([_flat(row) for row in self.rows])


def _flat(row: LossRow) -> dict[str, Any]:
    place: dict[str, Any] = {"condition": row.condition, "versus": row.versus, "source": row.source}
    place |= {"start": row.span.start, "stop": row.span.stop}
    numbers = {"loss": row.loss.mean, "low": row.loss.low, "high": row.loss.high}
    return place | {"tokens": row.tokens, "blocks": row.blocks} | rounded(numbers)


def tabulate_losses(
    block: int,
    read: Mapping[str, Sequence[DocumentRecord]],
    documents: Sequence[Document],
    weights: Mapping[str, float] | None,
) -> tuple[LossRow, ...]:
    """All rows: every condition, and the measured one less each other, over all positions, by part of them, and by
    source where there are several.

    Args:
        block: tokens of a block.
        read: of every document by condition, the measured one first.
        documents: that were read.
        weights: of the sources; None where every token counts alike.
    """
    measured, *others = read
    losses = {name: [record.losses for record in records] for name, records in read.items()}
    of_tokens = token_weights(documents, weights)
    sources = list(dict.fromkeys(document.source for document in documents))
    spans = [Span(0), *doubling_spans(max(len(one.counts) for one in losses[measured]), block)]
    rows = []
    for name, versus in [*((name, None) for name in read), *((measured, other) for other in others)]:
        minus = None if versus is None else losses[versus]
        for span in spans:
            numbers = losses_estimate(losses[name], minus, weights=of_tokens, blocks=span.blocks(block))
            rows.append(LossRow(name, versus, None, span, *numbers))
        for source in sources if len(sources) > 1 else ():
            places = [number for number, document in enumerate(documents) if document.source == source]
            taken = None if minus is None else [minus[place] for place in places]
            numbers = losses_estimate([losses[name][place] for place in places], taken)
            rows.append(LossRow(name, versus, source, Span(0), *numbers))
    return tuple(rows)


def token_weights(documents: Sequence[Document], weights: Mapping[str, float] | None) -> list[float] | None:
    """The weight of a token of every document, with which the mean over all tokens is that over sources by weight.

    That is what a blend of datasets has: it draws its sources by weight, and then their tokens alike.
    """
    if weights is None:
        return None
    predicted = dict.fromkeys(weights, 0)
    for document in documents:
        predicted[document.source] += len(document.tokens) - 1
    scale = sum(predicted.values()) / math.fsum(weights.values())
    return [scale * weights[document.source] / predicted[document.source] for document in documents]


def text_lines(results: PerplexityResults) -> str:
    """The summary for a terminal: loss by condition, by source and by position, and what documents gain."""
    tables = [condition_cells(results), *([source_cells(results)] if results.sources() else [])]
    tables.append(position_cells(results))
    return "\n\n".join([*map(aligned, tables), *results.documents.sentences()])


def condition_cells(results: PerplexityResults) -> list[list[str]]:
    """A table of the conditions, heads first."""
    lines = [["condition", "loss [95 %]", "perplexity", "bits per byte"]]
    for name in results.conditions:
        loss = results.find(name).loss
        lines.append([name, interval_text(loss), f"{math.exp(loss.mean):.3f}", f"{results.bits_per_byte(name):.4f}"])
    return lines


def source_cells(results: PerplexityResults) -> list[list[str]]:
    """A table of the sources, heads first: weight, measured loss, and less the others."""
    measured, others = results.conditions[0], results.conditions[1:]
    lines = [["source", "weight", "tokens", f"loss, {measured}", *(f"{measured} less {name}" for name in others)]]
    for source in results.sources():
        row = results.find(measured, None, None, source)
        gaps = [interval_text(results.find(measured, name, None, source).loss, sign="+") for name in others]
        weight = "by tokens" if results.weights is None else f"{results.weights[source]:g}"
        lines.append([source, weight, f"{row.tokens:,}", interval_text(row.loss), *gaps])
    return lines


def position_cells(results: PerplexityResults) -> list[list[str]]:
    """A table of the parts of the positions and of all of them, heads first: the measured loss, and less the others."""
    measured, others = results.conditions[0], results.conditions[1:]
    lines = [["positions", "tokens", f"loss, {measured}", *(f"{measured} less {name}" for name in others)]]
    for span in dict.fromkeys((*results.spans(), Span(0))):
        row = results.find(measured, None, span)
        gaps = [interval_text(results.find(measured, name, span).loss, sign="+") for name in others]
        lines.append([str(span), f"{row.tokens:,}", interval_text(row.loss), *gaps])
    return lines
