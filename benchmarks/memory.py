"""The fast-weight memory alone: dense reference and sparse implementation, training and inference, on one CPU thread.

Each side runs in a process of its own, so that its peak memory is its own. Run as a module it is one such side.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, Report, provenance

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """Sizes of one call."""

    batch: int
    tokens: int
    heads: int
    topk: int
    num_subkeys: int
    key_dim: int
    value_dim: int
    chunk_size: int


SHAPES = {
    "paper": Shape(1, 4096, 1, 8, 512, 512, 512, 512),
    "small": Shape(8, 256, 1, 8, 128, 64, 64, 64),
}
"""`paper`: one sequence of the paper's training; `small`: one layer of the quickstart."""


def measure_side(implementation: str, mode: str, shape: Shape, repeats: int) -> dict[str, Any]:
    """Time one implementation in this process.

    Args:
        implementation: ``reference`` or ``sparse``.
        mode: ``training`` (forward and backward) or ``inference``.
        shape: sizes.
        repeats: timed calls; the memory carries over from one to the next, as in training.

    Returns:
        CPU seconds of each call, peak resident memory in bytes, and norms that must agree between implementations.
    """
    import torch

    from megatron_fwpkm.ops import FastWeightState, fast_weight_memory, fast_weight_memory_

    torch.set_num_threads(1)
    torch.manual_seed(0)
    s, training = shape, mode == "training"
    sub_keys = torch.empty(s.heads, 2, s.num_subkeys, s.key_dim // 2).uniform_(-1, 1).mul_(s.key_dim**-0.5)
    values = torch.empty(s.num_subkeys**2, s.value_dim).normal_(std=s.value_dim**-0.5)
    queries = torch.randn(s.batch, s.tokens, s.heads, s.key_dim, requires_grad=training)
    targets = torch.randn(s.batch, s.tokens, s.value_dim, requires_grad=training)
    gates = torch.rand(s.batch, s.tokens, requires_grad=training)
    direction = torch.randn(s.batch, s.tokens, s.value_dim)
    state = FastWeightState(sub_keys, values)
    del sub_keys, values
    # The form each implementation is meant to be used in: the dense one makes new tables anyway.
    function = fast_weight_memory_ if implementation == "sparse" else fast_weight_memory
    seconds, norms = [], {}
    for number in range(repeats):
        start = time.process_time()
        with torch.set_grad_enabled(training):
            output = function(
                queries, targets, gates, state, topk=s.topk, chunk_size=s.chunk_size, implementation=implementation
            )
        if training:
            grads = torch.autograd.grad((output.retrieved * direction).sum(), [queries, targets, gates])
        seconds.append(time.process_time() - start)
        if number == 0:
            norms["retrieved"] = output.retrieved.norm().item()
            if training:
                norms |= {k: g.norm().item() for k, g in zip(("queries", "targets", "gates"), grads, strict=True)}
        state = output.state
        del output
    # Linux counts kilobytes, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"cpu_seconds": seconds, "peak_bytes": peak, "norms": norms}


def _measure_in_own_process(implementation: str, mode: str, shape: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", implementation, mode, shape, str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{implementation} ({mode}) failed with exit code {result.returncode}:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def check_agreement(sides: dict[str, dict[str, Any]], tolerance: float = 2e-3) -> None:
    """Refuse to compare the speed of two things that do not compute the same.

    The tolerance is wide because in float32 rounding swaps slots of almost equal score, for about one token in a
    thousand; equality to 1e-12 in float64 is a test (tests/ops).

    Raises:
        RuntimeError: a norm of the outputs or gradients differs by more than `tolerance`.
    """
    for name, expected in sides["reference"]["norms"].items():
        actual = sides["sparse"]["norms"][name]
        if not abs(actual - expected) <= tolerance * abs(expected):
            raise RuntimeError(
                f"no speed-up is reported: the norm of {name} is {actual} in sparse and {expected} in reference"
            )


def measure(shape: str, repeats: int, command: str) -> Report:
    """Measure both implementations in both modes at a named shape."""
    rows: list[list[str]] = []
    data: dict[str, Any] = {"shape": asdict(SHAPES[shape]), "repeats": repeats, "modes": {}}
    for mode in ("training", "inference"):
        sides = {}
        for implementation in ("reference", "sparse"):
            print(f"{mode}, {implementation} ...", file=sys.stderr, flush=True)
            sides[implementation] = _measure_in_own_process(implementation, mode, shape, repeats)
        check_agreement(sides)
        times = {name: statistics.median(side["cpu_seconds"]) for name, side in sides.items()}
        ratio = times["reference"] / times["sparse"]
        for name, side in sides.items():
            faster = f"{ratio:.1f}x" if name == "sparse" else ""
            rows.append([mode, name, f"{times[name]:.3g}", f"{side['peak_bytes'] / GIB:.2f}", faster])
        data["modes"][mode] = {"sides": sides, "speedup": ratio}
    s = SHAPES[shape]
    notes = [
        f"One call: B={s.batch} T={s.tokens} heads={s.heads} topk={s.topk} slots={s.num_subkeys}^2 "
        f"key_dim={s.key_dim} value_dim={s.value_dim} chunk_size={s.chunk_size}, float32, one CPU thread. "
        f"CPU seconds are the median of {repeats} calls; training is forward and backward. Peak is that of the whole "
        f"process, torch and the table of {s.num_subkeys**2 * s.value_dim * 4 / GIB:.2f} GiB included.",
    ]
    if shape == "paper":
        notes.append(
            "For comparison, measured once on another machine: the paper authors' released code needs 30.8 CPU seconds "
            "and 10.2 GiB in training, 17.0 CPU seconds and 4.0 GiB in inference."
        )
    header = ["mode", "implementation", "CPU seconds", "peak GiB", "faster than reference"]
    title = f"The memory operation, shape `{shape}`"
    return Report(f"memory_{shape}", title, notes, header, rows, data, provenance(command))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--shape", choices=sorted(SHAPES), default="paper", help="sizes to measure (default: paper)")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls per side (default: 3)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON and Markdown report"
    )


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Measure as the parsed arguments say."""
    return measure(arguments.shape, arguments.repeats, command)


if __name__ == "__main__":
    _, side, mode_name, shape_name, count = sys.argv
    print(json.dumps(measure_side(side, mode_name, SHAPES[shape_name], int(count))))
