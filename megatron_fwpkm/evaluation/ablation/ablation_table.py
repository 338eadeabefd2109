"""From trials to a table: every combination of choices with intervals over seeds, and its gap to the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..confidence import Estimate, mean_interval
from ..result_files import aligned, csv_text, json_text, rounded
from .grid import Grid
from .trial_record import TrialRecord

FAR = 512
"""Positions from here on are far: beyond every window of the grids that we run, and beyond a training sequence."""


@dataclass(frozen=True)
class AblationRow:
    """One combination of choices."""

    choices: tuple[str, ...]
    seeds: int
    parameters: int
    iterations: float
    """Mean over seeds."""
    cpu_seconds: float
    """Mean over seeds."""
    loss: Estimate
    far_loss: Estimate
    """At positions from FAR on."""
    gap: Estimate | None
    """Loss less that of the reference with the same other choices and seed; None for the reference."""
    far_gap: Estimate | None
    memory_gap: Estimate | None
    """Far loss with the memory on less that with it off; None without a memory."""
    gate: float | None
    recall: Mapping[str, float]
    """Mean exact match by context length."""


@dataclass(frozen=True)
class AblationResults:
    """A finished ablation, or one that a budget ended."""

    grid: Grid
    axes: tuple[str, ...]
    records: tuple[TrialRecord, ...]
    rows: tuple[AblationRow, ...]
    left_out: int
    """Trials that the budget did not reach."""
    provenance: Mapping[str, str]

    def to_json(self) -> str:
        """Everything, readable."""
        return json_text(
            {
                "format": "megatron_fwpkm ablation 1",
                "axes": {
                    name: {key: dict(value) for key, value in one.items()} for name, one in self.grid.axes.items()
                },
                "reference": self.grid.reference,
                "seeds": list(self.grid.seeds),
                "cpu_seconds": self.grid.cpu_seconds,
                "left_out": self.left_out,
                "results": [flat_row(self, row) for row in self.rows],
                "trials": [record.to_json() for record in self.records],
                "provenance": dict(self.provenance),
            }
        )

    def to_csv(self) -> str:
        """The rows, with a header line."""
        return csv_text([flat_row(self, row) for row in self.rows])


def flat_row(results: AblationResults, row: AblationRow) -> dict[str, Any]:
    """A row as plain values; the same columns for every row of the results."""
    values: dict[str, Any] = dict(zip(results.axes, row.choices, strict=True))
    values |= {"seeds": row.seeds, "parameters": row.parameters, "iterations": row.iterations}
    values |= {"cpu_seconds": row.cpu_seconds, "gate": math.nan if row.gate is None else row.gate}
    for name in ("loss", "far_loss", "gap", "far_gap", "memory_gap"):
        found: Estimate | None = getattr(row, name)
        one = found or Estimate(math.nan, math.nan, math.nan)
        values |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
    lengths = sorted({length for other in results.rows for length in other.recall}, key=int)
    return rounded(values | {f"recall_{length}": row.recall.get(length, math.nan) for length in lengths})


def tabulate_trials(
    grid: Grid, records: Sequence[TrialRecord], predicted: Mapping[str, int]
) -> tuple[AblationRow, ...]:
    """A row per combination, in the order of the grid.

    Args:
        grid: of the trials.
        records: of all seeds that were measured.
        predicted: tokens of the held-out text by the first position of their part, which weigh the parts.
    """
    by_choices: dict[tuple[str, ...], dict[int, TrialRecord]] = {}
    for record in records:
        by_choices.setdefault(record.choices, {})[record.seed] = record
    rows = []
    for choices, ours in by_choices.items():
        others = by_choices.get((grid.reference, *choices[1:]), {})
        rows.append(_row(choices, ours, {} if choices[0] == grid.reference else others, predicted))
    return tuple(rows)


def _row(
    choices: tuple[str, ...],
    ours: Mapping[int, TrialRecord],
    others: Mapping[int, TrialRecord],
    predicted: Mapping[str, int],
) -> AblationRow:
    trials = list(ours.values())
    both = [(ours[seed].losses, others[seed].losses) for seed in ours if seed in others]
    alone = [(trial.losses, trial.without_memory) for trial in trials if trial.without_memory]
    gates = [gate for trial in trials for gate in trial.gates.values()]
    return AblationRow(
        choices=choices,
        seeds=len(trials),
        parameters=trials[0].parameters,
        iterations=_mean([trial.iterations for trial in trials]),
        cpu_seconds=_mean([trial.cpu_seconds for trial in trials]),
        loss=mean_interval([trial.losses["all"] for trial in trials]),
        far_loss=mean_interval([_far(trial.losses, predicted) for trial in trials]),
        gap=_gap([one["all"] - other["all"] for one, other in both]),
        far_gap=_gap([_far(one, predicted) - _far(other, predicted) for one, other in both]),
        memory_gap=_gap([_far(one, predicted) - _far(other, predicted) for one, other in alone]),
        gate=_mean(gates) if gates else None,
        recall={length: _mean([trial.recall[length] for trial in trials]) for length in trials[0].recall},
    )


def _far(losses: Mapping[str, float], predicted: Mapping[str, int]) -> float:
    """Mean loss at positions from FAR on."""
    parts = [(losses[start], count) for start, count in predicted.items() if int(start) >= FAR]
    return math.fsum(loss * count for loss, count in parts) / sum(count for _, count in parts)


def _gap(differences: Sequence[float]) -> Estimate | None:
    return mean_interval(differences) if differences else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def cells_of(results: AblationResults, row: AblationRow) -> dict[str, str]:
    """A row as people read it, by column; the same columns for every row of the results."""
    cells = dict(zip(results.axes, row.choices, strict=True))
    cells |= {"seeds": str(row.seeds), "parameters": f"{row.parameters:,}", "iterations": f"{row.iterations:,.0f}"}
    cells |= {
        "CPU s": f"{row.cpu_seconds:,.0f}",
        "loss": _interval(row.loss),
        f"loss from {FAR}": _interval(row.far_loss),
    }
    cells |= {f"less {results.grid.reference}": _interval(row.gap, "+")}
    cells |= {f"from {FAR}": _interval(row.far_gap, "+"), "memory on less off": _interval(row.memory_gap, "+")}
    cells |= {"gate": "–" if row.gate is None else f"{row.gate:.2f}"}
    lengths = sorted({length for other in results.rows for length in other.recall}, key=int)
    return cells | {f"recall {int(length):,}": f"{row.recall[length]:.2f}" for length in lengths}


def _interval(found: Estimate | None, sign: str = "") -> str:
    if found is None:
        return "–"
    half = "" if math.isnan(found.low) else f" ± {found.high - found.mean:.4f}"
    return f"{found.mean:{sign}.4f}{half}"


def table_text(results: AblationResults) -> str:
    """The table for a terminal."""
    rows = [cells_of(results, row) for row in results.rows]
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return aligned(lines)
