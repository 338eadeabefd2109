"""Compare two runs bit for bit: logged numbers, evaluation results, exported weights.

Meant for code changes that should not change any number. Timings are left out; everything else that a run writes about
its numbers is compared without a tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.counted_things import count_things

CLOCK_FIELDS = frozenset(
    "seconds tokens_per_second tflops_per_device mfu memory_gb_per_second memory_gib peak_memory_gib places".split()
)
"""Fields of metrics.jsonl that differ from run to run: times, memory of the process, paths."""
_UNCOMPARED_KINDS = frozenset({"save"})
"""Records that say nothing about numbers."""
_METRICS, _RESULTS, _WEIGHTS = "metrics.jsonl", "results.csv", "*.safetensors"


@dataclass(frozen=True)
class Comparison:
    """What the comparison of one file found."""

    file: str
    """Path within the run's folder."""
    compared: str
    """How much was compared, such as `61 records`."""
    difference: str | None
    """The first or the largest difference in words; None if there is none."""

    def __str__(self) -> str:
        return f"{self.file:<32} {self.compared:<14} {self.difference or 'identical'}"


def compare_runs(before: Path, after: Path) -> list[Comparison]:
    """Compare metrics.jsonl, every results.csv and every .safetensors file of two folders of runs.

    Checkpoint folders are skipped: their files contain times and paths.

    Raises:
        ValueError: a folder is missing, or neither contains anything that can be compared.
    """
    for folder in (before, after):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give the folders of two runs")
    names = sorted(set(_comparable(before)) | set(_comparable(after)))
    if not names:
        raise ValueError(
            f"neither {before} nor {after} contains {_METRICS}, {_RESULTS} or {_WEIGHTS}: there is nothing to compare"
        )
    return [_compare_file(name, before, after) for name in names]


def _comparable(folder: Path) -> Iterator[str]:
    for pattern in (_METRICS, _RESULTS, _WEIGHTS):
        for path in folder.rglob(pattern):
            name = path.relative_to(folder)
            if not any(part.startswith("iter_") for part in name.parts):
                yield name.as_posix()


def _compare_file(name: str, before: Path, after: Path) -> Comparison:
    missing = [str(folder) for folder in (before, after) if not (folder / name).is_file()]
    if missing:
        return Comparison(name, "", f"missing in {missing[0]}")
    if name.endswith(_METRICS):
        return _compare_records(name, _records(before / name), _records(after / name))
    if name.endswith(_RESULTS):
        rows = [(folder / name).read_text(encoding="utf-8").splitlines() for folder in (before, after)]
        return _compare_records(name, *rows)
    return _compare_weights(name, before / name, after / name)


def _records(path: Path) -> list[Any]:
    """The records of a log without their clock fields.

    Raises:
        ValueError: a line is not JSON.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error.msg}") from error
        if record.get("kind") not in _UNCOMPARED_KINDS:
            records.append({key: value for key, value in record.items() if key not in CLOCK_FIELDS})
    return records


def _compare_records(name: str, before: list[Any], after: list[Any]) -> Comparison:
    one = "row" if name.endswith(_RESULTS) else "record"
    compared = count_things(len(before), one)
    for number, (old, new) in enumerate(zip(before, after, strict=False), 1):
        if repr(old) != repr(new):  # as text, so that NaN equals NaN and 0.0 differs from -0.0
            return Comparison(name, compared, f"{one} {number} differs: {_first_change(old, new)}")
    if len(before) != len(after):
        return Comparison(name, compared, f"the number of {one}s changed from {len(before)} to {len(after)}")
    return Comparison(name, compared, None)


def _first_change(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if repr(old.get(key)) != repr(new.get(key)):
                return f"{key} changed from {old.get(key)} to {new.get(key)}"
    return f"{old} changed to {new}"


def _compare_weights(name: str, before: Path, after: Path) -> Comparison:
    import torch
    from safetensors import safe_open

    with safe_open(before, "pt") as old, safe_open(after, "pt") as new:
        names = sorted(set(old.keys()) | set(new.keys()))
        compared = count_things(len(names), "tensor")
        different = []
        for tensor in names:
            if tensor not in old.keys() or tensor not in new.keys():  # noqa: SIM118  (a handle, not a mapping)
                return Comparison(name, compared, f"{tensor} is in one file only")
            left, right = old.get_tensor(tensor), new.get_tensor(tensor)
            if (left.shape, left.dtype) != (right.shape, right.dtype):
                shapes = [f"{list(found.shape)} {found.dtype}" for found in (left, right)]
                return Comparison(name, compared, f"{tensor} changed from {shapes[0]} to {shapes[1]}")
            if not torch.equal(left.view(torch.uint8), right.view(torch.uint8)):
                distance = (left.double() - right.double()).abs().max().item()
                different.append((distance, tensor))
    if not different:
        return Comparison(name, compared, None)
    distance, worst = max(different)
    verb = "differ" if len(different) > 1 else "differs"
    return Comparison(
        name,
        compared,
        f"{count_things(len(different), 'tensor')} {verb}, the largest difference is {distance:.3g} in {worst}",
    )
