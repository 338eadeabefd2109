"""From blocks of losses to numbers: by condition, by position, and differences of the same tokens; JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from ..causality import CausalityCheck
from ..confidence import Estimate, ratio_interval
from ..result_files import aligned, csv_text, json_text, rounded
from .loss_record import BlockLosses, StreamRecord
from .perplexity_settings import PerplexitySettings


@dataclass(frozen=True)
class Span:
    """Positions in a document, counted from 0; `stop` None is the end of the longest one."""

    start: int
    stop: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole document."""
        return self.start == 0 and self.stop is None

    def __str__(self) -> str:
        """As tables have it."""
        if self.is_whole:
            return "all"
        return f"{self.start:,} to {self.stop - 1:,}" if self.stop is not None else f"from {self.start:,}"


@dataclass(frozen=True)
class LossRow:
    """Mean loss per token of some positions, or its difference to that of another condition on the same tokens."""

    condition: str
    versus: str | None
    """The condition whose loss is subtracted."""
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
    rows: tuple[LossRow, ...]
    bytes_per_token: float
    """Of the predicted tokens."""
    tokens_per_second: dict[str, float]
    """By condition, per process."""
    causality: CausalityCheck
    provenance: dict[str, str]
    model_config: dict[str, Any]

    def find(self, condition: str, versus: str | None = None, span: Span | None = None) -> LossRow:
        """One row, by default that of all positions. Raises KeyError when there is none."""
        wanted = condition, versus, span or Span(0)
        for row in self.rows:
            if (row.condition, row.versus, row.span) == wanted:
                return row
        raise KeyError(f"no row for {wanted}")

    def spans(self) -> list[Span]:
        """The parts of the positions, in order."""
        return [row.span for row in self.rows if row.condition == self.conditions[0] and row.versus is None][1:]

    def bits_per_byte(self, condition: str) -> float:
        """Code length of the text, whatever the tokenizer."""
        return self.find(condition).loss.mean / math.log(2) / self.bytes_per_token

    def to_json(self) -> str:
        """Everything that another run of the same evaluation gives again, readable."""
        values = {
            "format": "megatron_fwpkm perplexity evaluation 1",
            "model_name": self.model_name,
            "settings": asdict(self.settings),
            "bits_per_byte": {name: round(self.bits_per_byte(name), 6) for name in self.conditions},
            "results": [_flat(row) for row in self.rows],
            "causality": asdict(self.causality) | {"passed": self.causality.passed},
            "model_config": self.model_config,
        }
        return json_text(values)

    def to_csv(self) -> str:
        """The rows, with a header line."""
        return csv_text([_flat(row) for row in self.rows])


def _flat(row: LossRow) -> dict[str, Any]:
    place = {"condition": row.condition, "versus": row.versus, "start": row.span.start, "stop": row.span.stop}
    numbers = {"loss": row.loss.mean, "low": row.loss.low, "high": row.loss.high}
    return place | {"tokens": row.tokens, "blocks": row.blocks} | rounded(numbers)


def tabulate_losses(
    settings: PerplexitySettings, conditions: Sequence[str], records: Sequence[StreamRecord]
) -> tuple[LossRow, ...]:
    """All rows: every condition, and the measured one less each other, over all positions and by part of them."""
    documents = {
        name: [one for record in records if record.key.condition == name for one in record.documents]
        for name in conditions
    }
    longest = max(len(one.counts) for one in documents[conditions[0]])
    spans = [Span(0), *_doubling(longest, settings.block)]
    pairs: list[tuple[str, str | None]] = [(name, None) for name in conditions]
    pairs += [(conditions[0], other) for other in conditions[1:]]
    return tuple(_row(settings.block, documents, *pair, span) for pair in pairs for span in spans)


def _doubling(blocks: int, block: int) -> Iterator[Span]:
    """The first block, the second, the next two, the next four, ..., the rest."""
    start, stop = 0, 1
    while stop < blocks:
        yield Span(start * block, stop * block)
        start, stop = stop, 2 * stop
    yield Span(start * block, None)


def _row(
    block: int, documents: Mapping[str, Sequence[BlockLosses]], condition: str, versus: str | None, span: Span
) -> LossRow:
    first, stop = span.start // block, None if span.stop is None else span.stop // block
    sums, counts = [], []
    minus: Sequence[BlockLosses | None] = () if versus is None else documents[versus]
    for one, other in zip_longest(documents[condition], minus):
        taken = (0.0,) * len(one.sums) if other is None else other.sums
        assert other is None or other.counts == one.counts, "conditions read different tokens"
        for ours, theirs, count in list(zip(one.sums, taken, one.counts, strict=True))[first:stop]:
            if count:
                sums.append(ours - theirs)
                counts.append(count)
    return LossRow(condition, versus, span, sum(counts), len(counts), ratio_interval(sums, counts))


def text_lines(results: PerplexityResults) -> str:
    """The summary for a terminal: loss by condition, then by position what the measured one gains or loses."""
    return f"{aligned(condition_cells(results))}\n\n{aligned(position_cells(results))}"


def condition_cells(results: PerplexityResults) -> list[list[str]]:
    """A table of the conditions, heads first."""
    lines = [["condition", "loss [95 %]", "perplexity", "bits per byte"]]
    for name in results.conditions:
        loss = results.find(name).loss
        lines.append([name, interval_text(loss), f"{math.exp(loss.mean):.3f}", f"{results.bits_per_byte(name):.4f}"])
    return lines


def position_cells(results: PerplexityResults) -> list[list[str]]:
    """A table of the parts of the positions and of all of them, heads first: the measured loss, and less the others."""
    measured, others = results.conditions[0], results.conditions[1:]
    lines = [["positions", "tokens", f"loss, {measured}", *(f"{measured} less {name}" for name in others)]]
    for span in (*results.spans(), Span(0)):
        row = results.find(measured, None, span)
        gaps = [interval_text(results.find(measured, name, span).loss, sign="+") for name in others]
        lines.append([str(span), f"{row.tokens:,}", interval_text(row.loss), *gaps])
    return lines


def interval_text(loss: Estimate, sign: str = "") -> str:
    """A mean and its interval, if there is one; with the sign + also positive numbers have one."""
    if math.isnan(loss.low):
        return f"{loss.mean:{sign}.4f}"
    return f"{loss.mean:{sign}.4f} [{loss.low:{sign}.4f}, {loss.high:{sign}.4f}]"
