"""The fast-weight memory alone, over sizes: every implementation, training and inference, in one session.

On the CPU each measurement runs on one thread in a process of its own, so that its peak memory is its own; run as a
module this file is one such process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import green, hardware, shapes
from benchmarks.hardware import GIB
from benchmarks.report import ROOT, Figure, Goal, Report, add_output_argument, digits, provenance
from benchmarks.shapes import Shape
from benchmarks.traffic import call_bytes
from megatron_fwpkm.processes.freed_memory import keep_freed_memory

IMPLEMENTATIONS = ("reference", "sparse", "triton")
MODES = ("training", "inference")


@dataclass(frozen=True)
class Case:
    """What one measurement is of: an implementation, at a shape, in a mode, on a device."""

    shape: Shape
    implementation: str
    mode: str
    device: str
    repeats: int


def prepare(case: Case) -> tuple[Callable[[], None], dict[str, Any]]:
    """Draw the inputs of one case.

    Returns:
        What to time (the memory carries over from one call to the next, as in training), and a dictionary that the
        first call fills: distinct rows that each chunk read, and norms that must agree between implementations.
    """
    import torch

    from megatron_fwpkm.ops import FastWeightState, fast_weight_memory, fast_weight_memory_, make_rounding

    s, training, device = case.shape, case.mode == "training", case.device
    torch.manual_seed(0)  # drawn on the CPU: the same numbers on every device
    sub_keys = torch.empty(s.heads, 2, s.num_subkeys, s.key_dim // 2).uniform_(-1, 1).mul_(s.key_dim**-0.5).to(device)
    values = torch.empty(s.num_subkeys**2, s.value_dim).normal_(std=s.value_dim**-0.5).to(device)
    queries = torch.randn(s.batch, s.tokens, s.heads, s.key_dim).to(device).requires_grad_(training)
    targets = torch.randn(s.batch, s.tokens, s.value_dim).to(device).requires_grad_(training)
    gates = torch.rand(s.batch, s.tokens).to(device).requires_grad_(training)
    direction = torch.randn(s.batch, s.tokens, s.value_dim).to(device)
    # The form each implementation is meant to be used in: the dense one makes new tables anyway.
    function = fast_weight_memory if case.implementation == "reference" else fast_weight_memory_
    rounding = make_rounding(0, device=device) if s.table_dtype == "bfloat16" else None
    values = values.to(getattr(torch, s.table_dtype))
    states, first = [FastWeightState(sub_keys, values, rounding=rounding)], dict[str, Any]()
    del sub_keys, values

    def call() -> None:
        """One call of the memory, with its backward pass in training."""
        with torch.set_grad_enabled(training):
            output = function(
                queries, targets, gates, states.pop(), topk=s.topk, chunk_size=s.chunk_size,
                implementation=case.implementation, undo_log=s.undo_log,
            )  # fmt: skip
        states.append(output.state)
        found = {"retrieved": output.retrieved}
        if training:
            grads = torch.autograd.grad((output.retrieved * direction).sum(), [queries, targets, gates])
            found |= dict(zip(("queries", "targets", "gates"), grads, strict=True))
        if not first:
            first["norms"] = {name: tensor.norm().item() for name, tensor in found.items()}
            chunks = output.slot_indices.split(s.chunk_size, dim=1)
            first["distinct_rows"] = [chunk.unique().numel() for chunk in chunks]

    return call, first


def measure(case: Case) -> dict[str, Any]:
    """Time one case in this process: milliseconds of each call, peak bytes, and what its first call tells."""
    if case.device == "cpu":
        keep_freed_memory()  # as pretrain.py and the tools do
    hardware.reset_peak(case.device)
    call, first = prepare(case)
    on_gpu = case.device.startswith("cuda")
    milliseconds = hardware.time_calls(call, case.device, case.repeats, warm_up=3 if on_gpu else 0)
    return {"milliseconds": milliseconds, "peak_bytes": hardware.peak_bytes(case.device), **first}


def measure_apart(case: Case) -> dict[str, Any]:
    """`measure` in a process of its own on the CPU, in this one on a GPU, whose peak can be reset."""
    if case.device.startswith("cuda"):
        import torch

        try:
            return measure(case)
        except torch.cuda.OutOfMemoryError:
            return {"failed": "out of memory"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(case))]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(
            f"{case.implementation} ({case.mode}) failed with exit code {result.returncode}:\n{result.stderr}"
        )
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def check_agreement(sides: dict[str, dict[str, Any]], tolerance: float = 2e-3) -> None:
    """Refuse to compare the speed of things that do not compute the same.

    The tolerance is wide because in float32 rounding swaps slots of almost equal score, for about one token in a
    thousand; equality to 1e-12 in float64 is a test (tests/ops).

    Raises:
        RuntimeError: a norm of the outputs or gradients differs by more than `tolerance` from the first side's.
    """
    complete = {name: side for name, side in sides.items() if "failed" not in side}
    first = next(iter(complete), "")
    for other in complete:
        for name, expected in complete[first]["norms"].items():
            actual = complete[other]["norms"][name]
            if not abs(actual - expected) <= tolerance * abs(expected):
                raise RuntimeError(
                    f"no speed-up is reported: the norm of {name} is {actual} in {other} and {expected} in {first}"
                )


def measure_shape(shape: Shape, implementations: Sequence[str], device: str, repeats: int) -> dict[str, Any]:
    """All implementations in both modes at one shape: mode -> implementation -> measurement."""
    found: dict[str, Any] = {}
    for mode in MODES:
        sides = {}
        for implementation in implementations:
            if shape.table_dtype == "bfloat16" and implementation == "reference":
                continue  # computes in one dtype
            sides[implementation] = measure_apart(Case(shape, implementation, mode, device, repeats))
        check_agreement(sides)
        found[mode] = sides
    return found


def _rows(label: str, shape: Shape, modes: dict[str, Any], bandwidth: float) -> list[list[str]]:
    rows = []
    for mode, sides in modes.items():
        times = {name: statistics.median(side["milliseconds"]) for name, side in sides.items() if "failed" not in side}
        for name, side in sides.items():
            if "failed" in side:
                rows.append([label, mode, name, side["failed"], "", "", "", ""])
                continue
            moved = call_bytes(shape, side["distinct_rows"], training=mode == "training")
            faster = f"{times['reference'] / times[name]:.1f}x" if "reference" in times and name != "reference" else ""
            rows.append(
                [
                    label, mode, name, digits(times[name]), f"{moved / 2**20:.0f}",
                    f"{moved / bandwidth / (1e-3 * times[name]):.1%}", f"{side['peak_bytes'] / GIB:.2f}", faster,
                ]
            )  # fmt: skip
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--device", default="auto", help="torch device (default: auto, cuda where there is one)")
    shapes.add_arguments(parser)
    parser.add_argument(
        "--implementations", nargs="+", choices=IMPLEMENTATIONS, help="what to compare (default: all the device runs)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each (default: 3)")
    green.add_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Measure as the parsed arguments say.

    Raises:
        RuntimeError: the device is not there, the tests are not green, a case fails or two disagree.
    """
    device = hardware.resolve(arguments.device)
    kind = device.split(":")[0]
    name, wanted = shapes.chosen(arguments, {"cuda": "gpu"}.get(kind, kind))
    tests = green.require_green(arguments, device)
    if kind == "cpu":
        import torch

        torch.set_num_threads(1)
    bandwidth = hardware.copy_bandwidth(device)
    base, rows, results = wanted[0], list[list[str]](), list[dict[str, Any]]()
    implementations = arguments.implementations or (IMPLEMENTATIONS if kind == "cuda" else IMPLEMENTATIONS[:2])
    labels = [name] if len(wanted) == 1 else [shape.describe(base) for shape in wanted]
    for label, shape in zip(labels, wanted, strict=True):
        print(f"{label} ...", file=sys.stderr, flush=True)
        modes = measure_shape(shape, implementations, device, arguments.repeats)
        results.append({"shape": asdict(shape), "modes": modes})
        rows += _rows(label, shape, modes, bandwidth)
    notes = [
        f"One call on {hardware.title(device)}; {labels[0]} is {base.describe()}. Time is the median of "
        f"{arguments.repeats} "
        + ("calls on the device's clock" if kind == "cuda" else "calls in CPU time")
        + "; training is forward and backward. Moved are the bytes that must go to or from main memory (of rows, those "
        "that this call's tokens really read: benchmarks/traffic.py), and the share is of the copy bandwidth measured "
        f"in the same session, {bandwidth / 1e9:.1f} GB/s. Peak is "
        + (
            "what torch allocated on the device."
            if kind == "cuda"
            else "that of the whole process, torch included. The process keeps freed memory, as in training."
        ),
    ]
    if name == "paper":
        notes.append(
            "For comparison, measured once on another machine, one CPU thread: the paper authors' released code needs "
            "30.8 CPU seconds and 10.2 GiB in training, 17.0 CPU seconds and 4.0 GiB in inference."
        )
    header = ["shape", "mode", "implementation", "ms", "moved MiB", "of copy bandwidth", "peak GiB", "than reference"]
    figure = Figure(
        labels,
        {mode: _series(results, mode, implementations) for mode in MODES},
        f"milliseconds on {hardware.title(device)}",
    )
    goals = _goals(results[0]["modes"]) if name == "paper" and kind == "cpu" else []
    data = {"copy_bytes_per_second": bandwidth, "repeats": arguments.repeats, "results": results}
    stem = f"memory_{name}" + ("_cuda" if kind == "cuda" and name != "gpu" else "")
    return Report(stem, "The memory operation", notes, header, rows, data, provenance(command, tests), figure, goals)


def _goals(modes: dict[str, Any]) -> list[Goal]:
    """What one thread should reach at the paper's shape: 20 times the dense reference, below 1.2 GiB."""
    goals = []
    for mode, sides in modes.items():
        times = {name: statistics.median(side["milliseconds"]) for name, side in sides.items()}
        if {"reference", "sparse"} <= set(times):
            ratio = times["reference"] / times["sparse"]
            goals.append(Goal(f"{mode} against dense autograd", f"{ratio:.1f}x", ">= 20x", ratio >= 20))
        if "sparse" in sides:
            peak = sides["sparse"]["peak_bytes"] / GIB
            goals.append(Goal(f"{mode}, peak of the process", f"{peak:.2f} GiB", "< 1.2 GiB", peak < 1.2))
    return goals


def _series(results: list[dict[str, Any]], mode: str, names: Sequence[str]) -> dict[str, list[float | None]]:
    """Median milliseconds of every shape by implementation; None where it failed or does not take the shape."""
    sides = {name: [result["modes"][mode].get(name, {}) for result in results] for name in names}
    return {
        name: [statistics.median(side["milliseconds"]) if "milliseconds" in side else None for side in found]
        for name, found in sides.items()
    }


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure(Case(Shape(**asked.pop("shape")), **asked))))
