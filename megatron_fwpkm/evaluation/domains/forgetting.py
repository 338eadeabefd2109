"""From losses after every stage to the forgetting matrix, in JSON, CSV and a terminal's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..block_losses import interval_text, losses_estimate
from ..causality_verdict import CausalityCheck
from ..confidence import Estimate
from ..result_files import aligned, csv_text, json_text, rounded
from .domain_settings import ADAPTED, MEMORY_OFF, DomainSettings, after
from .stage_record import StageKey, StageRecord

Versus = Literal["initial", "own"]
"""Whose loss is subtracted: that of the initial memory, or that right after the domain itself was adapted to."""


@dataclass(frozen=True)
class ForgettingCell:
    """Mean held-out loss of one domain after one stage, or its difference on the same tokens."""

    condition: str
    order: int
    """Number of the order of domains."""
    stage: int
    """How many domains were adapted to."""
    after: str
    """The last of them, or `initial`."""
    domain: str
    """Whose held-out text is measured."""
    versus: Versus | None
    tokens: int
    blocks: int
    loss: Estimate


@dataclass(frozen=True)
class DomainResults:
    """A finished evaluation."""

    settings: DomainSettings
    model_name: str
    adapt_tokens: tuple[int, ...]
    """That each domain has to adapt to, in the given order."""
    cells: tuple[ForgettingCell, ...]
    causality: CausalityCheck
    provenance: dict[str, str]
    model_config: dict[str, Any]

    def find(
        self, domain: str, stage: int, *, order: int = 0, versus: Versus | None = None, condition: str = ADAPTED
    ) -> ForgettingCell:
        """One cell. Raises KeyError when there is none."""
        wanted = condition, 0 if stage == 0 else order, stage, domain, versus
        for cell in self.cells:
            if (cell.condition, cell.order, cell.stage, cell.domain, cell.versus) == wanted:
                return cell
        raise KeyError(f"no cell for {wanted}")

    def to_json(self) -> str:
        """Everything that is not about this one run, readable."""
        names = self.settings.names
        values = {
            "format": "megatron_fwpkm domains evaluation 1",
            "model_name": self.model_name,
            "settings": asdict(self.settings),
            "orders": [[names[number] for number in order] for order in self.settings.all_orders()],
            "adapt_tokens": dict(zip(names, self.adapt_tokens, strict=True)),
            "results": [_flat(cell) for cell in self.cells],
            "causality": self.causality.to_json(),
            "model_config": self.model_config,
        }
        return json_text(values)

    def to_csv(self) -> str:
        """The cells, with a header line."""
        return csv_text([_flat(cell) for cell in self.cells])


def _flat(cell: ForgettingCell) -> dict[str, Any]:
    values = asdict(cell)
    del values["loss"]
    return values | rounded({"loss": cell.loss.mean, "low": cell.loss.low, "high": cell.loss.high})


def tabulate_stages(settings: DomainSettings, records: Sequence[StageRecord]) -> tuple[ForgettingCell, ...]:
    """All cells: losses after every stage, less those of the initial memory, and after a domain's own stage less those
    of that stage."""
    by_key = {record.key: record for record in records}
    initial = by_key[StageKey(0, 0, ADAPTED)]
    orders, cells = settings.all_orders(), list[ForgettingCell]()
    for record in records:
        order, stage, condition = record.key
        reached = orders[order][:stage]
        for number, domain in enumerate(settings.names):
            pairs: list[tuple[Versus | None, StageRecord | None]] = [(None, None)]
            if record is not initial:
                pairs.append(("initial", initial))
            if number in reached[:-1]:
                pairs.append(("own", by_key[StageKey(order, reached.index(number) + 1, ADAPTED)]))
            for versus, other in pairs:
                minus = None if other is None else other.domains[number]
                numbers = losses_estimate(record.domains[number], minus)
                last = after(settings.names, orders[order], stage)
                cells.append(ForgettingCell(condition, order, stage, last, domain, versus, *numbers))
    return tuple(cells)


def matrix_cells(results: DomainResults, order: int = 0) -> list[list[str]]:
    """The forgetting matrix as text, heads first: losses without and before adaptation, then what adaptation to one
    domain after the other changes."""
    names = results.settings.names
    lines = [["after adapting to", *(f"{name} [95 %]" for name in names)]]
    off = [interval_text(results.find(name, 0, condition=MEMORY_OFF).loss) for name in names]
    lines.append([f"({MEMORY_OFF})", *off])
    lines.append(["(initial memory)", *(interval_text(results.find(name, 0).loss) for name in names)])
    for stage, number in enumerate(results.settings.all_orders()[order], 1):
        gaps = [results.find(name, stage, order=order, versus="initial").loss for name in names]
        lines.append([names[number], *(interval_text(gap, "+") for gap in gaps)])
    return lines


def forgetting_cells(results: DomainResults) -> list[list[str]]:
    """A table of what becomes of every domain's gain in every order, heads first."""
    names, orders = results.settings.names, results.settings.all_orders()
    lines = [["order", "domain", "gain right after", "left at the end", "forgotten"]]
    for order, numbers in enumerate(orders):
        for stage, number in enumerate(numbers, 1):
            name, last = names[number], len(numbers)
            gain = results.find(name, stage, order=order, versus="initial").loss
            left = results.find(name, last, order=order, versus="initial").loss
            forgotten = "(last)"
            if stage < last:
                forgotten = interval_text(results.find(name, last, order=order, versus="own").loss, "+")
            shown = " > ".join(names[one] for one in numbers)
            lines.append([shown, name, interval_text(gain, "+"), interval_text(left, "+"), forgotten])
    return lines


def forgetting_text(results: DomainResults) -> str:
    """The summary for a terminal: the matrix of the given order, and what every order forgets."""
    return f"{aligned(matrix_cells(results))}\n\n{aligned(forgetting_cells(results))}"
