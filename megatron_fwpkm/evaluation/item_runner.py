"""Measure independent items: records on disk are kept, the rest is measured in one process or several.

An evaluation is a settings dataclass, a function from an item to its record, and sections of a report. Free of torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .record_log import KeyedRecord, RecordLog
from .run_progress import RunProgress
from .run_ranks import RunRanks
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
    ranks: RunRanks = field(default_factory=RunRanks.of_environment, compare=False)
    """The processes of torchrun, which share the items."""

    def __post_init__(self) -> None:
        """Raises ValueError for processes of processes."""
        if self.ranks.size > 1 and self.workers > 1:
            raise ValueError(
                f"torchrun has started {self.ranks.size} processes and --workers {self.workers} asks each of them for "
                "more; use torchrun or --workers, not both"
            )


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


def open_log(
    options: RunOptions, identity: Mapping[str, Any], from_json: Callable[[Mapping[str, Any]], Measured]
) -> RecordLog[Measured]:
    """The log of an evaluation in its output folder, which is made.

    Under torchrun every process but the first writes a file of its own, `samples.rank1.jsonl`, ...; the first one takes
    them over at the end, or when the evaluation is continued, with however many processes.

    Args:
        options: how the evaluation runs.
        identity: as `RecordLog`.
        from_json: as `RecordLog`.

    Raises:
        ValueError: as `RecordLog`.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    ranks, path = options.ranks, options.output / "samples.jsonl"
    if ranks.rank == 0:
        log = RecordLog(path, identity, from_json, overwrite=options.overwrite)
        for part in _parts(log):
            part.unlink() if options.overwrite else log.absorb(part)
        ranks.wait_for_all("log is open")
    else:
        ranks.wait_for_all("log is open")
        log = RecordLog(path, identity, from_json)
    ranks.wait_for_all("log is read")
    log.ranks = ranks
    if ranks.rank:
        log.continue_in(path.with_name(f"samples.rank{ranks.rank}.jsonl"))
    return log


def _parts(log: RecordLog[Any]) -> list[Path]:
    """What other processes have written."""
    return sorted(log.path.parent.glob("samples.rank*.jsonl"))


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
    ranks, finished = log.ranks, sum(item in log.records for item in items)
    missing = [item for item in items if item not in log.records][ranks.rank :: ranks.size]
    measured: list[Measured] = []
    with RunProgress(finished + len(missing), finished, quiet=ranks.rank > 0) as progress:
        records: Iterator[Measured]
        if workers == 1 or len(missing) < 2:
            records = map(measure, missing)
        else:
            records = run_in_processes(workers, missing, make_worker, arguments)
        for record in records:
            log.append(record)
            measured.append(record)
            progress.advance(describe(measured))
    ranks.wait_for_all("items are measured")
    ranks.leave()
    if ranks.rank:
        sys.exit(0)  # the first process writes the results
    for part in _parts(log):
        log.absorb(part)
    log.arrange(items)
    return [log.records[item] for item in items]
