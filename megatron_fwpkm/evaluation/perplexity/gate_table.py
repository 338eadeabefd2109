"""Mean gates of the memories by position: how much of what a memory retrieves is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..block_losses import BlockLosses, losses_estimate
from ..confidence import Estimate
from ..result_files import rounded
from .loss_record import DocumentRecord
from .spans import Span, doubling_spans


@dataclass(frozen=True)
class GateRow:
    """The mean gate of one memory over the tokens that predict some positions."""

    condition: str
    layer: int
    """From 0."""
    span: Span
    gate: Estimate

    def flat(self) -> dict[str, Any]:
        """As results.json has it."""
        place = {"condition": self.condition, "layer": self.layer, "start": self.span.start, "stop": self.span.stop}
        return place | rounded({"gate": self.gate.mean, "low": self.gate.low, "high": self.gate.high})


def tabulate_gates(
    block: int, read: Mapping[str, Sequence[DocumentRecord]], weights: Sequence[float] | None
) -> tuple[GateRow, ...]:
    """Rows of all conditions whose model has gates, by layer and part of the positions; the whole first.

    Args:
        block: tokens of a block.
        read: of every document by condition.
        weights: of a token, by document; None where all count alike.
    """
    rows = []
    for condition, records in read.items():
        spans = [Span(0), *doubling_spans(max(len(one.losses.counts) for one in records), block)]
        for layer in sorted(records[0].gates):
            gates = [BlockLosses(one.gates[layer], one.losses.counts) for one in records]
            for span in spans:
                _, _, mean = losses_estimate(gates, weights=weights, blocks=span.blocks(block))
                rows.append(GateRow(condition, layer, span, mean))
    return tuple(rows)


def gate_cells(rows: Sequence[GateRow], condition: str) -> list[list[str]]:
    """A table of the gates in one condition, heads first; empty without any."""
    ours = {(row.span, row.layer): row.gate.mean for row in rows if row.condition == condition}
    layers = sorted({layer for _, layer in ours})
    lines = [["positions", *(f"layer {layer}" for layer in layers)]] if layers else []
    for span in dict.fromkeys(span for span, _ in ours):
        lines.append([str(span), *(f"{ours[span, layer]:.4f}" for layer in layers)])
    return lines
