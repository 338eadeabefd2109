"""The stages of one call of the memory, as the device's profiler sees them: where its time goes, and how near to the
copy bandwidth every kernel that moves rows comes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from benchmarks import green, hardware, shapes
from benchmarks.memory import IMPLEMENTATIONS, Case, prepare
from benchmarks.report import Goal, Report, add_output_argument, provenance
from benchmarks.traffic import backward_stages, forward_stages

KERNELS = {
    "selection": ("select_kernel", "slots_kernel", "address_kernel", "gemm"),
    "plan": ("write_plan_kernel", "adjoint_plan_kernel"),
    "read": ("read_rows_kernel",),
    "write": ("write_rows_kernel",),
    "backward_token": ("backward_rows_kernel",),
    "adjoint": ("adjoint_rows_kernel",),
    "key update and its backward": (
        "reader_mean_kernel", "strength_kernel", "tile_kernel", "finish_kernel", "strength_gradient_kernel",
        "slope_gradient_kernel", "token_backward_kernel",
    ),
    "block around the memory": (
        "normalize_hidden_kernel", "normalize_hidden_backward_kernel", "finish_hidden_kernel", "moments_kernel",
        "standardize_kernel", "standard_moments_kernel", "standardize_backward_kernel", "mixture_square_kernel",
        "mix_reads_kernel", "mixture_product_kernel", "mix_reads_backward_kernel", "finish_mixture_kernel",
        "add_output_kernel",
    ),
}  # fmt: skip
"""Stage -> kernels by name; `gemm` stands for every matrix product of the vendor's library. The rest is `other`."""

ROW_STAGES = ("read", "write", "backward_token", "adjoint")
GOAL = 0.6
"""Share of the copy bandwidth that the stages which move rows should reach."""


@dataclass(frozen=True)
class Spent:
    """Milliseconds of one call in one kernel, and how often it was launched."""

    kernel: str
    milliseconds: float
    launches: float


def stage_of(kernel: str) -> str:
    """The stage that a kernel belongs to."""
    for stage, names in KERNELS.items():
        if kernel in names or ("gemm" in names and "gemm" in kernel.lower()):
            return stage
    return "other"


def profile(case: Case) -> tuple[list[Spent], dict[str, Any], int]:
    """Profile a case after three calls that are not counted.

    Returns:
        What was spent in every kernel (on the CPU: in every operator of torch), most first; what the first call tells
        (`prepare`); and how often a call made the host wait for the device.
    """
    import torch
    from torch.profiler import ProfilerActivity

    on_gpu = case.device.startswith("cuda")
    call, first = prepare(case)
    hardware.time_calls(call, case.device, 0, warm_up=3)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(case.repeats):
            call()
    spent, waits = [], 0
    for event in profiler.key_averages():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
        waits += event.count if event.key in ("cudaStreamSynchronize", "Memcpy DtoH (Device -> Pageable)") else 0
        if on_device == on_gpu and microseconds:
            spent.append(Spent(event.key, microseconds / 1e3 / case.repeats, event.count / case.repeats))
    return sorted(spent, key=lambda one: -one.milliseconds), first, waits // case.repeats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--device", default="auto", help="torch device (default: auto, cuda where there is one)")
    shapes.add_arguments(parser)
    parser.add_argument("--implementation", choices=IMPLEMENTATIONS, help="default: triton on a GPU, sparse elsewhere")
    parser.add_argument("--mode", choices=["training", "inference"], default="training", help="default: training")
    parser.add_argument("--repeats", type=int, default=5, help="profiled calls (default: 5)")
    green.add_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Profile the grid's first shape as the parsed arguments say.

    Raises:
        RuntimeError: the device is not there, or the tests are not green.
    """
    import torch

    device = hardware.resolve(arguments.device)
    on_gpu = device.startswith("cuda")
    name, wanted = shapes.chosen(arguments, "gpu" if on_gpu else "paper")
    tests = green.require_green(arguments, device)
    if not on_gpu:
        torch.set_num_threads(1)
    bandwidth = hardware.copy_bandwidth(device)
    implementation = arguments.implementation or ("triton" if on_gpu else "sparse")
    shape, training = wanted[0], arguments.mode == "training"
    spent, first, waits = profile(Case(shape, implementation, arguments.mode, device, arguments.repeats))
    moved = forward_stages(shape, first["distinct_rows"], training=training)
    moved |= backward_stages(shape, first["distinct_rows"]) if training else {}
    stages = sum_stages(spent)
    rows, goals = [], []
    for stage, milliseconds in stages.items():
        share = moved[stage] / bandwidth / (1e-3 * milliseconds) if stage in ROW_STAGES else None
        cells = [f"{moved[stage] / 2**20:.0f}", f"{share:.0%}"] if share is not None else ["", ""]
        rows.append([f"**{stage}**", f"{milliseconds:.3f}", "", *cells])
        inside = [one for one in spent if stage_of(one.kernel) == stage]
        rows += [[one.kernel[:60], f"{one.milliseconds:.3f}", f"{one.launches:g}", "", ""] for one in inside[:12]]
        if share is not None:
            goals.append(Goal(f"{stage}: share of the copy bandwidth", f"{share:.0%}", f">= {GOAL:.0%}", share >= GOAL))
    total = sum(stages.values())
    notes = [
        f"One {arguments.mode} call of `{implementation}` on {hardware.title(device)} under torch's profiler, mean of "
        f"{arguments.repeats}: {shape.describe()}. {total:.2f} ms in all, the host waited for the device {waits} times "
        "a call. Moved are the bytes that must go to or from main memory (benchmarks/traffic.py), and the share is of "
        f"the copy bandwidth measured in the same session, {bandwidth / 1e9:.1f} GB/s."
        + ("" if on_gpu else " On a CPU the profiler tells torch's operators."),
    ]
    data = {
        "shape": vars(shape), "implementation": implementation, "copy_bytes_per_second": bandwidth, "moved": moved,
        "stages": stages, "host_waits": waits, "kernels": [vars(one) for one in spent],
    }  # fmt: skip
    header = ["stage or kernel", "ms", "launches", "moved MiB", "of copy bandwidth"]
    stem = f"stages_{name}_{implementation}_{arguments.mode}"
    return Report(stem, "Stages of the memory", notes, header, rows, data, provenance(command, tests), goals=goals)


def sum_stages(spent: list[Spent]) -> dict[str, float]:
    """Milliseconds of every stage that was seen, in the order of a call."""
    sums = dict.fromkeys([*KERNELS, "other"], 0.0)
    for one in spent:
        sums[stage_of(one.kernel)] += one.milliseconds
    return {stage: milliseconds for stage, milliseconds in sums.items() if milliseconds}
