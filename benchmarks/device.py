"""The fast-weight memory on one device: milliseconds and device memory of a call, training and inference."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.memory import GIB, SHAPES, Shape
from benchmarks.report import ROOT, Report, provenance


def measure_mode(shape: Shape, device_name: str, *, training: bool, repeats: int) -> dict[str, Any]:
    """Wall milliseconds of each call after one that is not counted, and the device's peak bytes (None on the CPU)."""
    import torch

    from megatron_fwpkm.ops import FastWeightState, fast_weight_memory_

    torch.manual_seed(0)
    device, s = torch.device(device_name), shape
    on_gpu = device.type == "cuda"
    values = torch.randn(s.num_subkeys**2, s.value_dim, device=device).mul_(s.value_dim**-0.5)
    sub_keys = torch.rand(s.heads, 2, s.num_subkeys, s.key_dim // 2, device=device).sub_(0.5).mul_(2 * s.key_dim**-0.5)
    queries = torch.randn(s.batch, s.tokens, s.heads, s.key_dim, device=device, requires_grad=training)
    targets = torch.randn(s.batch, s.tokens, s.value_dim, device=device, requires_grad=training)
    gates = torch.rand(s.batch, s.tokens, device=device, requires_grad=training)
    state, milliseconds = FastWeightState(sub_keys, values), []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(repeats + 1):
        if on_gpu:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        with torch.set_grad_enabled(training):
            output = fast_weight_memory_(queries, targets, gates, state, topk=s.topk, chunk_size=s.chunk_size)
        if training:
            torch.autograd.grad(output.retrieved.sum(), [queries, targets, gates])
        if on_gpu:
            torch.cuda.synchronize(device)
        milliseconds.append(1e3 * (time.perf_counter() - start))
        state = output.state
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    return {"milliseconds": milliseconds[1:], "peak_bytes": peak}


def device_title(device_name: str) -> str:
    """What the device is called."""
    import torch

    return torch.cuda.get_device_name(device_name) if device_name.startswith("cuda") else "CPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="paper", help="sizes to measure (default: paper)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per mode (default: 5)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON and Markdown report"
    )


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Measure as the parsed arguments say.

    Raises:
        RuntimeError: the device is not there.
    """
    import torch

    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"--device {arguments.device} is not there; --device cpu measures the same on the CPU")
    shape, rows = SHAPES[arguments.shape], []
    data: dict[str, Any] = {}
    for mode in ("training", "inference"):
        print(f"{mode} ...", file=sys.stderr, flush=True)
        side = measure_mode(shape, arguments.device, training=mode == "training", repeats=arguments.repeats)
        data[mode] = side
        peak = "" if side["peak_bytes"] is None else f"{side['peak_bytes'] / GIB:.2f}"
        rows.append([mode, f"{statistics.median(side['milliseconds']):.1f}", peak])
    s, name = shape, device_title(arguments.device)
    notes = [
        f"One call of the in-place form on {name}: B={s.batch} T={s.tokens} heads={s.heads} topk={s.topk} "
        f"slots={s.num_subkeys}^2 key_dim={s.key_dim} value_dim={s.value_dim} chunk_size={s.chunk_size}, float32. "
        f"Median of {arguments.repeats} calls after one that is not counted; training is forward and backward."
    ]
    data |= {"shape": asdict(shape), "device": name}
    stem = f"device_{arguments.device.split(':')[0]}_{arguments.shape}"
    header = ["mode", "milliseconds", "peak GiB on the device"]
    title = f"The memory on {name}, shape `{arguments.shape}`"
    return Report(stem, title, notes, header, rows, data, provenance(command))
