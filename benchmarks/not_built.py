"""What changes of the GPU path would gain that are not built, by the cost model: the best that each could do.

Each is the account of a layer's launches as it would be with the change (benchmarks/cost_model.py says what a launch
costs), so a gain is the difference of two predictions:

- scores and selection in one kernel: the product of queries and sub-keys is done in three passes of tensor cores, the
  selection costs nothing beside it, and the matrix of scores is neither written nor read;
- two streams: the value chain of a chunk runs beside the key chain of the next, in backward the other way round; the
  longer one hides the other, as far as the bandwidth is enough for both;
- bulk copies of rows, by TMA: kernels that move rows of tables reach the share of the bandwidth that streams do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from benchmarks.cost_model import (
    GPUS,
    GRAPH_SECONDS,
    ROWS_SHARE,
    STREAM_SHARE,
    Costing,
    Costs,
    Gpu,
    Surroundings,
    Work,
    layer_costs,
)
from benchmarks.kernel_traffic import ROW_KERNELS
from benchmarks.report import Table

Phases = dict[str, list[Work]]
"""Launches by phase, `forward` and `backward`."""
Changes = dict[str, dict[str, dict[str, dict[str, list[float]]]]]
"""See `not_built`."""

FUSED = "scores and selection"
KEY_STEPS = (
    "torch.bmm", "address_kernel", FUSED, "reader_mean_kernel", "strength_kernel", "tile_kernel", "finish_kernel",
    "strength_gradient_kernel", "slope_gradient_kernel", "token_backward_kernel",
)  # fmt: skip
"""What a chunk does to the sub-keys, beside its sort."""
PASSES = 3
"""Products of tensor cores that make one of float32: of high and high, high and low, low and high parts."""
WITHOUT_BULK_COPIES = ("A100",)
"""GPUs older than sm_90."""
WAYS = {"eager": "without CUDA graphs", "graph": "with CUDA graphs"}


@dataclass(frozen=True)
class SideBySide:
    """Two chains of as many equal chunks on two streams, the second chain one chunk behind the first.

    Attributes:
        first: all launches of the chain that is ahead.
        second: of the one that follows.
        chunks: of each.
    """

    first: list[Work]
    second: list[Work]
    chunks: int

    @property
    def launches(self) -> int:
        """How many kernels it consists of."""
        return sum(one.launches for one in (*self.first, *self.second))

    def seconds(self, gpu: Gpu, least: float) -> float:
        """The first chunk of one chain and the last of the other are alone, and all others have company."""
        alone = [sum(one.seconds(gpu, least) for one in chain) / self.chunks for chain in (self.first, self.second)]
        moved = sum(one.bytes for one in (*self.first, *self.second)) / self.chunks
        together = max(*alone, moved / (gpu.bandwidth * STREAM_SHARE))
        return sum(alone) + (self.chunks - 1) * min(together, sum(alone))


def fuse_selection(phases: Phases) -> Phases:
    """Scores and selection in one kernel for each product."""
    found = {}
    for name, work in phases.items():
        products = [one for one in work if one.what == "torch.bmm"]
        selections = [one for one in work if one.what == "address_kernel"]
        fused = [
            Work(FUSED, selection.bytes - selection.scores, PASSES * product.flops, "tfloat32")
            for product, selection in zip(products, selections, strict=True)
        ]
        found[name] = [one for one in work if one.what not in ("torch.bmm", "address_kernel")] + fused
    return found


def copy_in_bulk(phases: Phases) -> Phases:
    """Rows of tables at the share of the bandwidth that streams reach."""
    return {
        name: [replace(one, share=STREAM_SHARE) if one.what in ROW_KERNELS else one for one in work]
        for name, work in phases.items()
    }


def chains(work: list[Work], chunks: int) -> tuple[list[Work], list[Work], list[Work]]:
    """One phase's launches of the key chain, of the value chain, and outside both.

    A sort is the key chain's if there are as many equal ones as chunks; the others sort the writes of all chunks.
    """
    sorts = Counter(one.bytes for one in work if one.what == "torch.sort")
    keys, values, rest = list[Work](), list[Work](), list[Work]()
    for one in work:
        of_chunk = one.what in KEY_STEPS or (one.what == "torch.sort" and sorts[one.bytes] == chunks)
        (keys if of_chunk else values if one.what in ROW_KERNELS else rest).append(one)
    return keys, values, rest


def on_two_streams(phases: Phases, chunks: int) -> list[Costing]:
    """Both chains of a phase side by side."""
    found: list[Costing] = []
    for work in phases.values():
        keys, values, rest = chains(work, chunks)
        found += [*rest, SideBySide(keys, values, chunks)]
    return found


def not_built(phases: Phases, around: Surroundings, chunks: int) -> Changes:
    """What each change alone would gain, and all of them together.

    Args:
        phases: the launches as they are.
        around: what they stand in.
        chunks: of a sequence.

    Returns:
        change -> GPU -> way -> `layer`, milliseconds, and `ratio`, of the model with its memories to the model without
        where the host has not worked ahead, each without and with the change.
    """

    def in_line(changed: Phases) -> list[Costing]:
        """On one stream."""
        return [one for work in changed.values() for one in work]

    fused, copied = fuse_selection(phases), copy_in_bulk(phases)
    found: Changes = {}
    for gpu_name, gpu in GPUS.items():
        can_copy = gpu_name not in WITHOUT_BULK_COPIES
        everything = on_two_streams(copy_in_bulk(fused) if can_copy else fused, chunks)
        changed = {
            "scores and selection in one kernel": in_line(fused),
            "the chains on two streams": on_two_streams(phases, chunks),
            "bulk copies of rows": in_line(copied) if can_copy else in_line(phases),
            "all three": everything,
        }
        before = layer_costs(gpu, in_line(phases), around)
        for change, work in changed.items():
            found.setdefault(change, {})[gpu_name] = _compare(before, layer_costs(gpu, work, around))
    return found


def _compare(before: Costs, after: Costs) -> dict[str, dict[str, list[float]]]:
    """Layer and ratio by way."""
    return {
        way: {
            "layer": [1e3 * one.layer[way] for one in (before, after)],
            "ratio": [one.ratio["host" if way == "eager" else way] for one in (before, after)],
        }
        for way in WAYS
    }


def not_built_table(changes: Changes) -> Table:
    """The gains, a row for each change and way."""
    rows = []
    for change, by_gpu in changes.items():
        for way, how in WAYS.items():
            rows.append([f"{change}, {how}", *(_cell(one[way]) for one in by_gpu.values())])
    notes = [
        "The layer in milliseconds and the 112M model with three memories as a multiple of one without, each without "
        "and with the change, at its best: a prediction, from the same counts and constants (benchmarks/not_built.py).",
        f"Scores and selection: {PASSES} passes of tensor cores in TF32 with the selection at no cost, and no matrix "
        "of scores in memory. Two streams: the longer chain of a chunk hides the other, as far as the bandwidth is "
        "enough for both; as if both could run on the same multiprocessors, and as if the writes of a chunk could be "
        "sorted without further launches. Bulk copies (TMA, from sm_90 on): rows of tables reach the share of the "
        f"bandwidth that streams do, {STREAM_SHARE:g} and not {ROWS_SHARE:g}; both are assumed.",
        "Without CUDA graphs a layer takes at least as long as its host, which a change helps only by the launches "
        "that it saves; the model is then given where the host has not worked ahead.",
    ]
    return Table("What is not built", notes, ["change", *GPUS], rows)


def _cell(found: dict[str, list[float]]) -> str:
    (before, after), ratio = found["layer"], found["ratio"]
    if before == after:
        return "no gain"
    return f"{before:.2f} to {after:.2f} ms ({100 * (after / before - 1):.0f} %), {ratio[0]:.2f} to {ratio[1]:.2f}x"


def chains_table(phases: Phases, chunks: int) -> Table:
    """What bounds the launches of the two chains, with CUDA graphs."""
    rows = []
    for phase, work in phases.items():
        keys, values, _ = chains(work, chunks)
        for name, chain in (("sub-keys", keys), ("values", values)):
            rows.append([f"{name}, {phase}", *(_bounds(chain, gpu) for gpu in GPUS.values())])
    notes = [
        "Of all chunks, in milliseconds with CUDA graphs, and how much of it is bound by what. Two streams can hide "
        "what is bound by latency; launches that are bound by memory or compute fill the GPU, and share it."
    ]
    return Table("The two chains", notes, ["chain", *GPUS], rows)


def _bounds(chain: list[Work], gpu: Gpu) -> str:
    seconds: dict[str, float] = {}
    for one in chain:
        parts = one.parts(gpu, GRAPH_SECONDS)
        bound = max(parts, key=lambda part: parts[part])
        seconds[bound] = seconds.get(bound, 0.0) + parts[bound]
    most = sorted(seconds.items(), key=lambda item: -item[1])
    return f"{1e3 * sum(seconds.values()):.2f}: " + ", ".join(f"{bound} {1e3 * part:.2f}" for bound, part in most)
