"""How long the memory should take on GPUs that are not here: a prediction from counted launches and bytes.

Every launch of a layer's forward and backward is counted at the paper's shape (benchmarks/counting.py). It takes as
long as the slowest of: moving its bytes (benchmarks/kernel_traffic.py), its floating-point operations, and the least a
kernel takes. The host works ahead of the GPU, so a layer takes the longer of both; with CUDA graphs the host hands over
whole graphs. All constants are in this file, each with where it comes from. Nothing here was measured on a GPU; the GPU
suite prints measurements beside these predictions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.kernel_traffic import ROW_KERNELS, evenly_read, moved_bytes
from benchmarks.launches import CHUNKS, RECORD
from benchmarks.report import RESULTS, Goal, Report, add_output_argument, provenance


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says of a GPU.

    Attributes:
        bandwidth: bytes a second of its memory.
        float32: operations a second without tensor cores.
        bfloat16: operations a second of its tensor cores, dense.
        source: where these come from.
    """

    bandwidth: float
    float32: float
    bfloat16: float
    source: str


GPUS = {
    "A100": Gpu(2.039e12, 19.5e12, 312e12, "NVIDIA's data sheet of the A100, 80 GB SXM"),
    "H100": Gpu(3.35e12, 67e12, 989e12, "NVIDIA's data sheet of the H100 SXM, half of what it says with sparsity"),
    "H200": Gpu(4.8e12, 67e12, 989e12, "NVIDIA's data sheet of the H200 SXM, half of what it says with sparsity"),
    "B200": Gpu(8e12, 75e12, 2250e12, "NVIDIA's data sheet of the HGX B200, an eighth, dense"),
}

STREAM_SHARE = 0.9
"""Share of the bandwidth that long streams reach: assumed; a copy on an H200 is expected at 4.3 of 4.8 TB/s."""
ROWS_SHARE = 0.6
"""Share for kernels that move rows of tables: the goal of benchmarks/README.md."""
FLOAT32_SHARE = 0.7
"""Share of the float32 rate that a product of the paper's sizes reaches: assumed."""
BFLOAT16_SHARE = 0.5
"""Share of the tensor cores' rate that a projection from or to 768 numbers reaches: assumed."""
KERNEL_SECONDS = 2e-6
"""Least time from one kernel's begin to the next one's on a stream: assumed."""
GRAPH_SECONDS = 1.3e-6
"""The same within a CUDA graph: assumed."""
LAUNCH_SECONDS = 4e-6
"""What the host needs for a launch beyond Python and torch's dispatch, in the driver: the lower end of the 4 to 6 us
that susun-blog.com/blog/pegainfer-3-cuda-graph describes."""
GRAPH_LAUNCH_SECONDS = 20e-6
"""What the host needs to hand over a whole graph: assumed; a layer has one each way."""
WAIT_SECONDS = 20e-6
"""What a host that waits for the GPU loses until the GPU is busy again: assumed."""
SORT_BITS = 8
"""Bits that a pass of a radix sort orders; each pass reads and writes keys and positions."""
SCANS = {"cummax": 1.8e-9, "cummin": 1.8e-9}
"""Seconds per number of what torch computes in one block: an estimate, 0.48 ms for 262,144 numbers."""
UTILISATION = 0.4
"""Share of the tensor cores' rate that the model without memories reaches in training: assumed (MFU)."""

LAYER = "layer triton bf16 reset=never TP1"
MODEL_RATIO, LAYER_MILLISECONDS = 1.3, 3.0


@dataclass(frozen=True)
class Work:
    """What one launch does.

    Attributes:
        what: the kernel, or `torch.` and the operator.
        bytes: to and from main memory.
        flops: floating-point operations of a matrix product, 0 elsewhere.
        tensor_cores: whether these run there.
        launches: kernels that it is made of.
        serial: seconds that it takes at least, because one block does it.
    """

    what: str
    bytes: float
    flops: float = 0.0
    tensor_cores: bool = False
    launches: int = 1
    serial: float = 0.0

    def parts(self, gpu: Gpu, least: float) -> dict[str, float]:
        """Seconds that each bound alone would take.

        Args:
            gpu: where.
            least: what a kernel takes at least.
        """
        share = ROWS_SHARE if self.what in ROW_KERNELS else STREAM_SHARE
        rate = gpu.bfloat16 * BFLOAT16_SHARE if self.tensor_cores else gpu.float32 * FLOAT32_SHARE
        return {
            "memory": self.bytes / (gpu.bandwidth * share),
            "compute": self.flops / rate,
            "latency": max(self.launches * least, self.serial),
        }

    def seconds(self, gpu: Gpu, least: float) -> float:
        """What it takes on the GPU."""
        return max(self.parts(gpu, least).values())


def work_of(counted: Any, num_slots: int) -> list[Work]:
    """The launches of one phase of a layer.

    Args:
        counted: a `benchmarks.counting.Counted` of tensors without data.
        num_slots: rows of the table; its slots are read evenly.

    Raises:
        RuntimeError: a kernel has no formula.
    """
    launches = (evenly_read(launch, num_slots, CHUNKS) for launch in counted.arguments)
    work = [Work(launch.name, moved_bytes(launch)) for launch in launches]
    for name, flops, moved, size in counted.matmuls:
        work.append(Work(f"torch.{name}", moved, flops, tensor_cores=size == 2))
    work += [_operator(*one) for one in counted.moved]
    return work


def _operator(name: str, moved: int, size: int) -> Work:
    """An operator that moves some bytes, and whose first tensor has numbers of some size."""
    if name == "sort":
        passes = 8 * size // SORT_BITS
        return Work("torch.sort", moved * passes, launches=passes + 2)
    if name in SCANS:
        return Work(f"torch.{name}", moved, serial=SCANS[name] * moved / (2 * size + 8))
    return Work(f"torch.{name}", moved)


@dataclass(frozen=True)
class Prediction:
    """Of one GPU, in milliseconds, forward and backward together.

    Attributes:
        device: the GPU's work of a layer, launch after launch.
        host: the host's time of a layer without CUDA graphs.
        layer: of a layer, without CUDA graphs and with.
        model: of a micro-batch of the model without memories.
        ratio: of the model with its memories to the model without: `eager` where the host has worked ahead, `host`
            where it has not, and `graph`.
        kernels: by kernel or operator: launches, megabytes of one, microseconds of all, and what bounds it.
    """

    device: dict[str, float]
    host: float
    layer: dict[str, float]
    model: float
    ratio: dict[str, float]
    kernels: dict[str, dict[str, Any]]


def predict(gpu: Gpu, work: Iterable[Work], host: float, waits: int, model_seconds: float, layers: int) -> Prediction:
    """Put a layer's launches together.

    Args:
        gpu: where.
        work: all launches, forward and backward.
        host: the host's seconds for them without what the driver takes.
        waits: how often it waits for the GPU.
        model_seconds: of the model without memories.
        layers: how many memories it has.
    """
    work = list(work)
    launches = sum(one.launches for one in work)
    device = {
        "eager": sum(one.seconds(gpu, KERNEL_SECONDS) for one in work),
        "graph": sum(one.seconds(gpu, GRAPH_SECONDS) for one in work),
    }
    host += launches * LAUNCH_SECONDS
    # A host that waits cannot work ahead: its time comes on top of the GPU's.
    eager = max(device["eager"], host) if not waits else device["eager"] + host + waits * WAIT_SECONDS
    layer = {"eager": eager, "graph": max(device["graph"], 2 * GRAPH_LAUNCH_SECONDS)}
    ratio = {
        # Within a model the host works ahead of the other layers, too, so only the GPU's work adds up.
        "eager": (model_seconds + layers * (eager if waits else device["eager"])) / model_seconds,
        "host": (model_seconds + layers * eager) / model_seconds,
        "graph": (model_seconds + layers * layer["graph"]) / model_seconds,
    }
    return Prediction(
        device={name: 1e3 * seconds for name, seconds in device.items()},
        host=1e3 * host,
        layer={name: 1e3 * seconds for name, seconds in layer.items()},
        model=1e3 * model_seconds,
        ratio=ratio,
        kernels=_by_kernel(work, gpu, host / max(1, launches)),
    )


def _by_kernel(work: list[Work], gpu: Gpu, host_seconds: float) -> dict[str, dict[str, Any]]:
    """What every kernel or operator takes, most first; `host` bounds one that the host needs longer to launch."""
    found: dict[str, dict[str, Any]] = {}
    for one in work:
        entry = found.setdefault(one.what, {"launches": 0, "bytes": 0.0, "microseconds": 0.0, "bounds": {}})
        parts = one.parts(gpu, KERNEL_SECONDS)
        seconds = max(parts.values())
        bound = "host" if host_seconds * one.launches > seconds else max(parts, key=lambda part: parts[part])
        entry["launches"] += 1
        entry["bytes"] += one.bytes
        entry["microseconds"] += 1e6 * seconds
        entry["bounds"][bound] = entry["bounds"].get(bound, 0.0) + seconds
    for entry in found.values():
        bounds = entry.pop("bounds")
        entry["bound"] = max(bounds, key=lambda bound: bounds[bound])
    return dict(sorted(found.items(), key=lambda item: -item[1]["microseconds"]))


def model_flops() -> tuple[float, int]:
    """Operations of a micro-batch of the paper's 112M model without memories, and how many memories it has."""
    from benchmarks.model import SIZES
    from megatron_fwpkm.config.loading import parse_pretrain
    from megatron_fwpkm.config.model_flops import training_flops

    config = parse_pretrain(SIZES["paper"]).config
    without = replace(config, fwpkm=replace(config.fwpkm, layer_numbers=()))
    assert config.data.vocab_size is not None
    tokens = config.training.micro_batch_size * config.model.seq_length
    return tokens * training_flops(without, config.data.vocab_size), len(config.fwpkm.layer_numbers)


def predict_all() -> dict[str, Prediction]:
    """Predictions by the name of the GPU, from what is counted now and the host's time of the record.

    Raises:
        RuntimeError: a kernel has no formula.
    """
    from benchmarks.counted_calls import Subject, count, paper_shape
    from megatron_fwpkm.distributed.startup import silence_known_warnings
    from megatron_fwpkm.libraries.probes import installed

    silence_known_warnings()
    installed()  # hides from Megatron what is only half installed
    shape = paper_shape(CHUNKS)
    phases = count(Subject("layer", "triton", "bf16"), shape).values()
    work = [one for phase in phases for one in work_of(phase, shape.num_subkeys**2)]
    times = json.loads(RECORD.read_text())["data"]["host"][LAYER]
    host = 1e-3 * (times["forward"] + times["backward"])
    waits = sum(sum(phase.waits.values()) for phase in phases)
    flops, layers = model_flops()
    return {
        name: predict(gpu, work, host, waits, flops / (gpu.bfloat16 * UTILISATION), layers)
        for name, gpu in GPUS.items()
    }


def predicted(gpu_name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """A written prediction for a GPU by the name that its driver gives it, or None where there is none.

    Args:
        gpu_name: such as `NVIDIA H200`.
        folder: where `python -m benchmarks.run roofline --output FOLDER` has written it.

    Returns:
        The fields of `Prediction`.
    """
    recorded = json.loads((folder / "roofline.json").read_text())["data"]["predictions"]
    return next((found for name, found in recorded.items() if name in gpu_name), None)


def prediction_note(what: str, gpu_name: str, folder: Path = RESULTS) -> str | None:
    """A sentence to stand beside a measurement, or None where there is no prediction for the GPU.

    Args:
        what: `layer` or `model`.
        gpu_name: by its driver.
        folder: as for `predicted`.
    """
    found = predicted(gpu_name, folder)
    if found is None:
        return None
    if what == "layer":
        layer, alone = found["layer"], found["device"]["eager"]
        text = f"{layer['eager']:.2f} ms, {layer['graph']:.2f} with CUDA graphs; the GPU's work alone {alone:.2f}"
    else:
        ratio = found["ratio"]
        text = f"{ratio['eager']:.2f} to {ratio['host']:.2f} times the model without memories, {ratio['graph']:.2f} "
        text += "with CUDA graphs"
    return f"Predicted (benchmarks/results/roofline.md): {text}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=1, help="without effect: nothing is measured")
    add_output_argument(parser)


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Predict for every GPU."""
    predictions = predict_all()
    header = ["what", "launches", "MB of one", *predictions]
    rows = [[name, "", "", *cells] for name, cells in _totals(predictions).items()]
    shown = list(predictions.values())
    for kernel, entry in shown[0].kernels.items():
        cells = [one.kernels[kernel] for one in shown]
        size = f"{entry['bytes'] / entry['launches'] / 1e6:.2f}"
        rows.append([kernel, str(entry["launches"]), size, *(f"{c['microseconds']:.0f} {c['bound']}" for c in cells)])
    notes = [
        "Predicted, not measured, and no GPU was used: one memory layer in bfloat16 and the paper's 112M model with "
        f"sliding attention, 8 sequences of {CHUNKS} chunks of 512 tokens, reads spread evenly over the table. Every "
        "launch takes as long as its bytes, its operations, or the least that a kernel takes. All constants, with "
        "their sources, are in benchmarks/roofline.py, the bytes of a kernel in benchmarks/kernel_traffic.py.",
        "The rows of kernels and operators are microseconds of all launches of a forward and a backward, and what "
        "bounds them: memory, compute, latency (the least a kernel takes) or, without CUDA graphs, the host, which "
        "then needs longer for the launch than the GPU for the work.",
    ]
    data = {"predictions": {name: asdict(one) for name, one in predictions.items()}, "gpus": _constants()}
    title = "Predicted times on GPUs"
    return Report("roofline", title, notes, header, rows, data, provenance(command), goals=_goals(predictions))


def _totals(predictions: dict[str, Prediction]) -> dict[str, list[str]]:
    """The rows above the kernels."""
    shown = predictions.values()
    return {
        "**layer, ms**": [f"{one.layer['eager']:.2f}" for one in shown],
        "**layer with CUDA graphs, ms**": [f"{one.layer['graph']:.2f}" for one in shown],
        "of the GPU, ms": [f"{one.device['eager']:.2f}" for one in shown],
        "of the host, ms": [f"{one.host:.2f}" for one in shown],
        "model without memories, ms": [f"{one.model:.1f}" for one in shown],
        "**model with three memories, times**": [
            f"{one.ratio['eager']:.2f} to {one.ratio['host']:.2f}" if one.ratio["eager"] < one.ratio["host"]
            else f"{one.ratio['eager']:.2f}" for one in shown
        ],
        "**with CUDA graphs, times**": [f"{one.ratio['graph']:.2f}" for one in shown],
    }  # fmt: skip


def _constants() -> dict[str, Any]:
    """What the predictions assume, for the record."""
    names = [name for name in globals() if name.isupper() and isinstance(globals()[name], float)]
    return {**{name: globals()[name] for name in names}, **{name: asdict(gpu) for name, gpu in GPUS.items()}}


def _goals(predictions: dict[str, Prediction]) -> list[Goal]:
    goals = []
    for name, way in ((name, way) for name in ("H100", "H200") for way in ("eager", "graph")):
        found, how = predictions[name], "with CUDA graphs" if way == "graph" else "without CUDA graphs"
        milliseconds, ratio = found.layer[way], found.ratio["host" if way == "eager" else way]
        met = milliseconds < LAYER_MILLISECONDS
        goals.append(Goal(f"{name}, {how}: layer", f"{milliseconds:.2f} ms", f"< {LAYER_MILLISECONDS:g} ms", met))
        goals.append(Goal(f"{name}, {how}: model", f"{ratio:.2f}x", f"< {MODEL_RATIO:g}x", ratio < MODEL_RATIO))
    return goals
