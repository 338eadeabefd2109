"""The output of training: metrics.jsonl, TensorBoard if asked for, the progress line and the closing summary.

Weights & Biases is in `wandb_run`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import IO, Any, Protocol

JsonRecord = dict[str, Any]


class Sink(Protocol):
    """Something that takes records of scalars."""

    def write(self, record: JsonRecord) -> None:
        """Take one record."""

    def close(self) -> None:
        """Flush and close."""

    def go_back(self, iteration: int) -> None:
        """Forget the records after an iteration, from which the run continues."""


class JsonLines:
    """Appends one JSON object per line to a file and flushes it, so that a killed run keeps what it wrote."""

    def __init__(self, path: Path, *, keep_until: int) -> None:
        """Open `path`, dropping records of iterations after `keep_until` (a resumed run writes them again).

        With `keep_until` 0 the run is a new one: records of another are moved aside, to metrics.1.jsonl and so on. So
        is a file in which more than a last line that was cut off is no record.
        """
        kept = [r for r in read_records(path) if r.get("iteration", 0) <= keep_until] if path.exists() else []
        if path.exists() and path.stat().st_size > 0 and (keep_until == 0 or not _is_log(path)):
            path.rename(_free_name(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = self._open(kept)

    def _open(self, kept: list[JsonRecord]) -> IO[str]:
        """Let the file have these records, and open it at its end."""
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(partial, self._path)
        return self._path.open("a", encoding="utf-8")

    def go_back(self, iteration: int) -> None:
        """Drop the records after an iteration."""
        self._file.close()
        self._file = self._open([r for r in read_records(self._path) if r.get("iteration", 0) <= iteration])

    def write(self, record: JsonRecord) -> None:
        """Append one record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Writes every scalar of a record under `<kind>/<name>` at its iteration."""

    def __init__(self, folder: str, *, purge_step: int, queue_size: int = 1000) -> None:
        """Open an event file in `folder`; events from `purge_step` on are hidden (a resumed run writes them again).

        `queue_size` scalars wait before they are written.

        Raises ValueError where the tensorboard package is missing.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "--tensorboard-dir needs the tensorboard package: pip install tensorboard, or remove the flag"
            ) from error
        self._make_writer = lambda step: SummaryWriter(folder, max_queue=queue_size, purge_step=step)
        self._writer = self._make_writer(purge_step)

    def go_back(self, iteration: int) -> None:
        """Hide the events after an iteration."""
        self._writer.close()
        self._writer = self._make_writer(iteration + 1)

    def write(self, record: JsonRecord) -> None:
        """Write the scalars of one record."""
        step = record.get("iteration", 0)
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class EveryInterval:
    """Passes on the training records of every n-th iteration, and all others."""

    def __init__(self, sink: Sink, interval: int) -> None:
        """`sink` gets the records of iterations that `interval` divides."""
        self._sink = sink
        self._interval = interval

    def write(self, record: JsonRecord) -> None:
        """Pass one record on, or leave it out."""
        if record["kind"] != "train" or record["iteration"] % self._interval == 0:
            self._sink.write(record)

    def go_back(self, iteration: int) -> None:
        """Let the sink forget the records after an iteration."""
        self._sink.go_back(iteration)

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()


class MetricsLog:
    """Sends records to all sinks; one object per run, on rank 0 only (other ranks hold none)."""

    def __init__(self, sinks: list[Sink]) -> None:
        """`sinks` are closed with the log."""
        self._sinks = sinks

    def __enter__(self) -> MetricsLog:
        """Use as a context manager closes the sinks at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the sinks."""
        for sink in self._sinks:
            sink.close()

    def go_back(self, iteration: int) -> None:
        """Forget the records after an iteration, from which the run continues."""
        for sink in self._sinks:
            sink.go_back(iteration)

    def write(self, kind: str, record: JsonRecord) -> None:
        """Write one record; `kind` is train, evaluation, test, skip, rewind, stragglers, restart or end."""
        for sink in self._sinks:
            sink.write({"kind": kind, **record})


def read_records(path: Path) -> list[JsonRecord]:
    """All complete records of a metrics file; an incomplete last line of a killed run is left out."""
    found = [_record(line) for line in path.read_bytes().split(b"\n")]
    return [record for record in found if record is not None]


def _is_log(path: Path) -> bool:
    """Whether every line that ends is a record."""
    return all(_record(line) is not None for line in path.read_bytes().split(b"\n")[:-1])


def _record(line: bytes) -> JsonRecord | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None


def _free_name(path: Path) -> Path:
    """The first of metrics.1.jsonl, metrics.2.jsonl, ... that does not exist."""
    names = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not name.exists())


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level, names joined by `/`."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def scalars(record: JsonRecord) -> dict[str, float]:
    """The numbers of a record as TensorBoard and Weights & Biases name them: `train/memory/3/gate_mean`."""
    return {
        f"{record['kind']}/{name}": value
        for name, value in flatten(record).items()
        if name not in ("kind", "iteration") and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def progress_line(record: JsonRecord, train_iters: int, remaining_seconds: float) -> str:
    """The one line per log interval; memory numbers are means over the layers that have a memory."""
    width = len(str(train_iters))
    loss = f"loss {record['loss']:.4f}"
    if abs(record["lm_loss"] - record["loss"]) > 1e-6 * abs(record["loss"]):
        loss += f" (lm {record['lm_loss']:.4f})"
    parts = [
        f"iteration {record['iteration']:>{width}}/{train_iters}",
        loss,
        f"lr {record['lr']:.3e}",
        f"grad {record['grad_norm']:.3f}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
    ]
    if "tflops_per_device" in record:
        share = f" ({record['mfu']:.1%} MFU)" if "mfu" in record else ""
        parts.append(f"{record['tflops_per_device']:.3g} TFLOP/s per device{share}")
    layers = list(record["memory"].values())
    if layers:

        def mean(name: str) -> float:
            """Mean of a statistic over the layers that have it."""
            found = [layer[name] for layer in layers if name in layer]
            return sum(found) / len(found)

        parts.append(f"gate {mean('gate_mean'):.2f}")
        if any("coverage" in layer for layer in layers):
            parts.append(f"slots {mean('coverage'):.1%} collisions {mean('collisions'):.1%}")
        parts.append(f"memorization {mean('memorization_loss'):.4f}")
    parts.append(f"ETA {duration(remaining_seconds)}")
    return " | ".join(parts)


def summary_lines(summary: JsonRecord) -> list[str]:
    """The closing summary for people; `summary` is the `end` record."""
    first = (
        f"{summary['reason']}: iteration {summary['iteration']}, {summary['tokens']:,} tokens in "
        f"{duration(summary['seconds'])}, median {summary['tokens_per_second']:,.0f} tokens/s, "
        f"peak memory {summary['peak_memory_gib']:.2f} GiB"
    )
    if summary["reason"] == "finished" and not summary["tokens"]:
        first = (
            f"nothing to do: the run already finished at iteration {summary['iteration']}; increase --train-iters to "
            "continue"
        )
    lines = [first]
    if summary["last_loss"] is not None:
        lines.append(f"loss: last {summary['last_loss']:.4f}, best {summary['best_loss']:.4f}")
    if summary["validation_loss"] is not None:
        lines.append(f"validation lm loss: last {summary['validation_loss']:.4f}")
    if summary["test_loss"] is not None:
        lines.append(f"test lm loss: {summary['test_loss']:.4f}")
    lines += [f"{name}: {place}" for name, place in summary["places"].items() if place]
    return lines


def median_or_zero(values: list[float]) -> float:
    """Median, 0 for an empty list (a run that stopped before its first step)."""
    return median(values) if values else 0.0


def peak_memory_gib(device_peak_bytes: int | None = None) -> float:
    """Highest memory of this process in GiB: the accelerator's peak when given, else resident memory."""
    if device_peak_bytes is not None:
        return device_peak_bytes / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
