"""What a training run has recorded so far, read from its metrics.jsonl."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

Record = dict[str, Any]
Curve = tuple[list[int], list[float]]
"""Iterations and values."""

METRICS = "metrics.jsonl"


@dataclass
class RunHistory:
    """The records of one run; those that a resumed or rewound run wrote again are there once, as written last."""

    label: str
    train: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    """Iterations at which something happened, and what: `resumed`, or a record's kind and reason."""
    saves: list[int] = field(default_factory=list)
    """Iterations of the checkpoints."""
    end: Record | None = None
    """The closing record; None while the run is going on, and after a crash."""

    def curve(self, name: str) -> Curve:
        """A number of the training records, where it was recorded."""
        return _curve((record["iteration"], record.get(name)) for record in self.train)

    def validation(self) -> Curve:
        """Cross-entropy on the validation data."""
        return _curve((record["iteration"], record.get("lm_loss")) for record in self.evaluations)

    def layers(self) -> list[str]:
        """Numbers of the layers with a memory."""
        return sorted({layer for record in self.train for layer in record.get("memory", {})}, key=int)

    def memory(self, layer: str, name: str) -> Curve:
        """A statistic of one layer's memory."""
        return _curve((r["iteration"], r.get("memory", {}).get(layer, {}).get(name)) for r in self.train)

    def summary(self) -> dict[str, str]:
        """What a table of runs shows."""
        last, validation = self.train[-1], self.validation()[1]
        speeds = self.curve("tokens_per_second")[1]
        return {
            "iterations": f"{last['iteration']:,}",
            "tokens": f"{last['consumed_tokens']:,}" if "consumed_tokens" in last else "-",
            "LM loss": f"{last['lm_loss']:.4f}",
            "validation": f"{validation[-1]:.4f}" if validation else "-",
            "best validation": f"{min(validation):.4f}" if validation else "-",
            "tokens/s": f"{median(speeds):,.0f}" if speeds else "-",
            "end": str(self.end["reason"]) if self.end else "not ended",
        }


def read_history(place: Path, label: str | None = None) -> RunHistory:
    """Read a run's metrics.jsonl, or the one in a folder; a last line that is still being written is left out.

    Raises:
        ValueError: the file is missing or has no training records, or another line is no JSON object.
    """
    path = place / METRICS if place.is_dir() else place
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a run's {METRICS} or the folder that contains it")
    history = RunHistory(label or path.absolute().parent.name)
    for record in _records(path):
        _add(history, record)
    if not history.train:
        raise ValueError(f"{path} has no training records yet: wait for the run's first --log-interval")
    return history


def read_histories(places: Sequence[Path], labels: Sequence[str | None]) -> list[RunHistory]:
    """Read several runs; those with the same label are numbered."""
    runs = [read_history(place, label) for place, label in zip(places, labels, strict=True)]
    times = Counter(run.label for run in runs)
    for number, run in enumerate(runs, 1):
        if times[run.label] > 1:
            run.label = f"{run.label} ({number})"
    return runs


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average without the pull of its start; `weight` 0 changes nothing."""
    mean, total, found = 0.0, 0.0, []
    for value in values:
        mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        found.append(mean / total)
    return found


def _records(path: Path) -> Iterator[Record]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number} is not JSON: is it the {METRICS} of a run?") from error
        if not isinstance(record, dict) or "kind" not in record or not isinstance(record.get("iteration"), int):
            raise ValueError(f"{path}, line {number} is no record of a run: it needs `kind` and `iteration`")
        if record["kind"] == "train" and not isinstance(record.get("lm_loss"), int | float):
            raise ValueError(f"{path}, line {number} is no training record: it needs `lm_loss`")
        yield record


def _add(history: RunHistory, record: Record) -> None:
    kind, iteration = record["kind"], record["iteration"]
    if kind == "train":
        before = history.train[-1] if history.train else None
        if before is not None and record.get("seconds", 0) < before.get("seconds", 0):
            history.events.append((min(before["iteration"], iteration), "resumed"))
        for records in (history.train, history.evaluations):
            while records and records[-1]["iteration"] >= iteration:
                records.pop()
        history.train.append(record)
        history.end = None
    elif kind == "evaluation":
        history.evaluations = [found for found in history.evaluations if found["iteration"] < iteration] + [record]
    elif kind == "save":
        history.saves.append(iteration)
    elif kind == "end":
        history.end = record
    elif kind not in ("test", "start"):
        history.events.append((iteration, f"{kind}: {record['reason']}" if "reason" in record else kind))


def _curve(points: Iterator[tuple[int, Any]]) -> Curve:
    known = [(x, float(y)) for x, y in points if isinstance(y, int | float)]
    return [x for x, _ in known], [y for _, y in known]
