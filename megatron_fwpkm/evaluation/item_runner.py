"""Measure independent items: records on disk are kept, the rest is measured in one process or several.

An evaluation is a settings dataclass, a function from an item to its record, and sections of a report. Free of torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .record_log import KeyedRecord, RecordLog
from .run_progress import RunProgress
from .workers import run_in_processes

Item = TypeVar("Item", bound=Hashable)
Measured = TypeVar("Measured", bound=KeyedRecord)


@dataclass(frozen=True)
class RunOptions:
    """How an evaluation runs; no option changes a number."""

    output: Path
    """Folder of the results, the report and the log of records."""
    workers: int = 1
    """Processes, each with a model of its own; 1 stays in this process."""
    device: str = "auto"
    """Torch device of every process; `auto` is CUDA where there is one."""
    overwrite: bool = False
    """Discard records that are already in the output folder."""
    command: Sequence[str] = ()
    """Program and arguments, for the record."""
    model_name: str = ""
    """Name of the model in the report; derived from its path if empty."""


def check_run(model: str, output: Path, workers: int) -> None:
    """Raise ValueError for an invalid model folder, output folder or number of processes."""
    check_output(output, workers)
    if not Path(model).is_dir():
        raise ValueError(f"--model {model} is not a folder; give an export, a checkpoint or a Hugging Face model")


def check_output(output: Path, workers: int) -> None:
    """Raise ValueError for an invalid output folder or number of processes."""
    if workers < 1:
        raise ValueError(f"--workers {workers} must be at least 1")
    place = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"--output {output} cannot be created: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--output {output} cannot be written: no write permission for {place}")


def measure_items(
    items: Sequence[Item],
    log: RecordLog[Measured],
    measure: Callable[[Item], Measured],
    describe: Callable[[Sequence[Measured]], str],
    *,
    workers: int = 1,
    make_worker: Callable[..., Callable[[Item], Measured]],
    arguments: tuple[Any, ...],
) -> list[Measured]:
    """The records of all items, in their order; each is in the log as soon as it is measured.

    In the end the log has the order of the items, too, whoever measured them and when.

    Args:
        items: what to measure; the key of an item's record is the item.
        log: records that are there are not measured again.
        measure: gives the record of an item in this process.
        describe: a few words for the progress line, from the records measured so far in this run.
        workers: processes; with more than one, each calls `make_worker(*arguments)` and measures with what it gives.
        make_worker: a top-level function; its arguments, items and records are picklable.
        arguments: of `make_worker`.

    Raises:
        ValueError, OSError, ChildProcessError, RuntimeError: as `measure` and `run_in_processes`.
    """
    missing = [item for item in items if item not in log.records]
    measured: list[Measured] = []
    with RunProgress(len(items), len(items) - len(missing)) as progress:
        records: Iterator[Measured]
        if workers == 1 or len(missing) < 2:
            records = map(measure, missing)
        else:
            records = run_in_processes(workers, missing, make_worker, arguments)
        for record in records:
            log.append(record)
            measured.append(record)
            progress.advance(describe(measured))
    log.arrange(items)
    return [log.records[item] for item in items]
