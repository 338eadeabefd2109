"""Statistics of the memories over all ranks: what the log shows and the guards watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.ranks import world_size
from ..ops import FastWeightState

STATISTICS = ("gate_mean", "coverage", "collisions", "memorization_loss", "addressing_loss")


class ObservedMemory(Protocol):
    """What a report needs of a memory layer."""

    layer_number: int

    def statistics(self) -> object:
        """An object with the attributes named in STATISTICS (numbers or scalar tensors) about the last forward."""

    def fast_weights(self) -> FastWeightState:
        """References to this rank's tables."""


@dataclass(frozen=True)
class LayerStatistics:
    """Means over the ranks that hold a part or a replica of one layer's memory."""

    gate_mean: float
    """Mean of the gate over tokens, 0 to 1."""
    coverage: float
    """Share of the slots written since the last reset."""
    collisions: float
    """1 - distinct slots / reads in the last chunk(s)."""
    memorization_loss: float
    addressing_loss: float


@dataclass(frozen=True)
class MemoryReport:
    """Every layer's statistics by layer number, and the worst values that the guards compare."""

    layers: dict[int, LayerStatistics]
    worst_memorization_loss: dict[int, float]
    """Highest over the replicas; NaN where a replica's is not finite."""
    finite_tables: dict[int, bool]

    def as_record(self) -> dict[str, dict[str, float]]:
        """For the log: {layer number: statistics}."""
        return {str(number): asdict(layer) for number, layer in self.layers.items()}


def is_finite(table: Tensor) -> bool:
    """Whether a table has neither NaN nor infinity, without a temporary of its size."""
    low, high = torch.aminmax(table)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def collect_memory_report(
    memories: Sequence[ObservedMemory], layer_numbers: Sequence[int], device: torch.device
) -> MemoryReport:
    """Bring the statistics of all layers to every rank; called by every rank, whatever layers it holds.

    `layer_numbers` are the memory layers of the whole model, in the order of the configuration.
    """
    width = len(STATISTICS)
    # Per layer: sums of the statistics and the number of ranks that hold it; and worst loss, loss or table not finite.
    sums = torch.zeros(len(layer_numbers), width + 1, dtype=torch.float64)
    worst = torch.full((len(layer_numbers), 3), -torch.inf, dtype=torch.float64)
    for memory in memories:
        row = list(layer_numbers).index(memory.layer_number)
        found = memory.statistics()
        values = torch.tensor([float(getattr(found, name)) for name in STATISTICS], dtype=torch.float64)
        sums[row] = torch.cat([values, torch.ones(1, dtype=torch.float64)])
        loss = values[STATISTICS.index("memorization_loss")]
        weights = memory.fast_weights()
        finite = is_finite(weights.values) and is_finite(weights.sub_keys)
        # NaN does not survive a maximum on every backend, so it travels as a flag.
        worst[row] = torch.stack(
            [
                torch.nan_to_num(loss, nan=0.0),
                (~torch.isfinite(loss)).double(),
                torch.tensor(float(not finite)).double(),
            ]
        )
    if world_size() > 1:
        sums, worst = sums.to(device), worst.to(device)
        dist.all_reduce(sums)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    layers, losses, finite_tables = {}, {}, {}
    for number, total, bad in zip(layer_numbers, sums.tolist(), worst.tolist(), strict=True):
        layers[number] = LayerStatistics(*(value / max(1.0, total[width]) for value in total[:width]))
        losses[number] = float("nan") if bad[1] > 0 else bad[0]
        finite_tables[number] = bad[2] <= 0
    return MemoryReport(layers, losses, finite_tables)
