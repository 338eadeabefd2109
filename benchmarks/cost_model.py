"""What launches cost on GPUs that are not here: constants, the time of a launch, and of a layer.

A launch takes as long as the slowest of: moving its bytes (benchmarks/kernel_traffic.py), its floating-point
operations, and the least a kernel takes. The host works ahead of the GPU, so a layer takes the longer of both; with
CUDA graphs the host hands over whole graphs. All constants are in this file, each with where it comes from. Nothing
here was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.kernel_traffic import ROW_KERNELS, evenly_read, moved_bytes


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says of a GPU.

    Attributes:
        bandwidth: bytes a second of its memory.
        float32: operations a second without tensor cores.
        bfloat16: operations a second of its tensor cores, dense.
        tfloat32: the same for float32 numbers of which the tensor cores take 10 bits behind the first.
        source: where these come from.
    """

    bandwidth: float
    float32: float
    bfloat16: float
    tfloat32: float
    source: str


_WITH_SPARSITY = "half of what it says with sparsity"
GPUS = {
    "A100": Gpu(2.039e12, 19.5e12, 312e12, 156e12, "NVIDIA's data sheet of the A100, 80 GB SXM"),
    "H100": Gpu(3.35e12, 67e12, 989e12, 494e12, f"NVIDIA's data sheet of the H100 SXM, {_WITH_SPARSITY}"),
    "H200": Gpu(4.8e12, 67e12, 989e12, 494e12, f"NVIDIA's data sheet of the H200 SXM, {_WITH_SPARSITY}"),
    "B200": Gpu(8e12, 75e12, 2250e12, 1100e12, f"NVIDIA's data sheet of the HGX B200, an eighth, {_WITH_SPARSITY}"),
}

STREAM_SHARE = 0.9
"""Share of the bandwidth that long streams reach: assumed; a copy on an H200 is expected at 4.3 of 4.8 TB/s."""
ROWS_SHARE = 0.6
"""Share for kernels that move rows of tables: the goal of benchmarks/README.md."""
FLOAT32_SHARE = 0.7
"""Share of the float32 rate that a product of the paper's sizes reaches: assumed."""
BFLOAT16_SHARE = 0.5
"""Share of the tensor cores' rate that a projection from or to 768 numbers reaches: assumed."""
TFLOAT32_SHARE = 0.5
"""The same for float32 numbers in three passes over 256 numbers: assumed."""
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

_SHARES = {"float32": FLOAT32_SHARE, "bfloat16": BFLOAT16_SHARE, "tfloat32": TFLOAT32_SHARE}


@dataclass(frozen=True)
class Work:
    """What one launch does.

    Attributes:
        what: the kernel, or `torch.` and the operator.
        bytes: to and from main memory.
        flops: floating-point operations of a matrix product, 0 elsewhere.
        unit: what does these: `float32`, without tensor cores, or `bfloat16` or `tfloat32`, with them.
        launches: kernels that it is made of.
        serial: seconds that it takes at least, because one block does it.
        share: of the bandwidth, if it is not that of its kind.
        scores: bytes of its `bytes` that the product of queries and sub-keys before it has written.
    """

    what: str
    bytes: float
    flops: float = 0.0
    unit: str = "float32"
    launches: int = 1
    serial: float = 0.0
    share: float | None = None
    scores: float = 0.0

    def parts(self, gpu: Gpu, least: float) -> dict[str, float]:
        """Seconds that each bound alone would take.

        Args:
            gpu: where.
            least: what a kernel takes at least.
        """
        share = self.share or (ROWS_SHARE if self.what in ROW_KERNELS else STREAM_SHARE)
        rate: float = getattr(gpu, self.unit) * _SHARES[self.unit]
        return {
            "memory": self.bytes / (gpu.bandwidth * share),
            "compute": self.flops / rate,
            "latency": max(self.launches * least, self.serial),
        }

    def seconds(self, gpu: Gpu, least: float) -> float:
        """What it takes on the GPU."""
        return max(self.parts(gpu, least).values())


def work_of(counted: Any, num_slots: int, pieces: int) -> list[Work]:
    """The launches of one phase of a layer.

    Args:
        counted: a `benchmarks.counting.Counted` of tensors without data.
        num_slots: rows of the table; its slots are read evenly.
        pieces: chunks of a sequence.

    Raises:
        RuntimeError: a kernel has no formula.
    """
    work = []
    for noted in counted.arguments:
        launch = evenly_read(noted, num_slots, pieces)
        products = launch.tensors().get("PRODUCTS")
        work.append(Work(launch.name, moved_bytes(launch), scores=0.0 if products is None else products.nbytes))
    for name, flops, moved, size in counted.matmuls:
        work.append(Work(f"torch.{name}", moved, flops, "bfloat16" if size == 2 else "float32"))
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


class Costing(Protocol):
    """What takes time on a GPU: a `Work`, or some of them together."""

    @property
    def launches(self) -> int:
        """How many kernels it consists of."""

    def seconds(self, gpu: Gpu, least: float) -> float:
        """What it takes, where a kernel takes `least` at least."""


@dataclass(frozen=True)
class Costs:
    """Of a layer, forward and backward together, in seconds.

    Attributes:
        device: the GPU's work, launch after launch: `eager`, without CUDA graphs, and `graph`, with them.
        host: the host's time without CUDA graphs.
        layer: of a layer, `eager` and `graph`.
        ratio: of the model with its memories to the model without: `eager` where the host has worked ahead, `host`
            where it has not, and `graph`.
    """

    device: dict[str, float]
    host: float
    layer: dict[str, float]
    ratio: dict[str, float]


@dataclass(frozen=True)
class Surroundings:
    """What a layer's launches stand in.

    Attributes:
        launch_seconds: the host's for a launch, without what the driver takes.
        waits: how often the host waits for the GPU.
        model_flops: floating-point operations of a micro-batch of the model without memories.
        layers: how many memories it has.
    """

    launch_seconds: float
    waits: int
    model_flops: float
    layers: int


def layer_costs(gpu: Gpu, work: Iterable[Costing], around: Surroundings) -> Costs:
    """Put a layer's launches, forward and backward, together."""
    work = list(work)
    device = {
        "eager": sum(one.seconds(gpu, KERNEL_SECONDS) for one in work),
        "graph": sum(one.seconds(gpu, GRAPH_SECONDS) for one in work),
    }
    host = sum(one.launches for one in work) * (around.launch_seconds + LAUNCH_SECONDS)
    # A host that waits cannot work ahead: its time comes on top of the GPU's.
    waits = around.waits
    eager = max(device["eager"], host) if not waits else device["eager"] + host + waits * WAIT_SECONDS
    layer = {"eager": eager, "graph": max(device["graph"], 2 * GRAPH_LAUNCH_SECONDS)}
    model, layers = model_seconds(gpu, around), around.layers
    ratio = {
        # Within a model the host works ahead of the other layers, too, so only the GPU's work adds up.
        "eager": 1 + layers * (eager if waits else device["eager"]) / model,
        "host": 1 + layers * eager / model,
        "graph": 1 + layers * layer["graph"] / model,
    }
    return Costs(device, host, layer, ratio)


def model_seconds(gpu: Gpu, around: Surroundings) -> float:
    """Of a micro-batch of the model without memories."""
    return around.model_flops / (gpu.bfloat16 * UTILISATION)
