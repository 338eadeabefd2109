"""Statistics of the memories over all ranks: what the log shows and the guards watch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.ranks import world_size

STATISTICS = ("gate_mean", "coverage", "collisions", "memorization_loss", "addressing_loss")
TABLE_STATISTICS = ("coverage", "collisions", "addressing_loss")
"""Those that only a memory with a table has; for others they are NaN."""


class HeldFastWeights(Protocol):
    """A memory's fast weights, of any kind."""

    def tables(self) -> dict[str, Tensor]:
        """The fast weights by name."""


class ObservedMemory(Protocol):
    """What a report needs of a memory layer."""

    layer_number: int

    def statistics_on_device(self) -> Tensor:
        """Figures of the last forward in the order of STATISTICS, float64."""

    def fast_weights(self) -> HeldFastWeights:
        """References to this rank's fast weights."""


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
        """For the log: {layer number: statistics}, without those that a memory's kind does not have."""
        return {
            str(number): {
                name: value
                for name, value in asdict(layer).items()
                if name not in TABLE_STATISTICS or not math.isnan(layer.coverage)
            }
            for number, layer in self.layers.items()
        }


def is_finite(table: Tensor) -> Tensor:
    """Whether a table has neither NaN nor infinity (bool scalar), without a temporary of its size."""
    return torch.isfinite(torch.stack(torch.aminmax(table))).all()


def collect_memory_report(
    memories: Sequence[ObservedMemory], layer_numbers: Sequence[int], device: torch.device
) -> MemoryReport:
    """Bring the statistics of all layers to every rank; called by every rank, whatever layers it holds.

    The host waits once, for all numbers together.

    `layer_numbers` are the memory layers of the whole model, in the order of the configuration.
    """
    width = len(STATISTICS)
    # Per layer: sums of the statistics and the number of ranks that hold it; and worst loss, loss or table not finite.
    sums = torch.zeros(len(layer_numbers), width + 1, dtype=torch.float64, device=device)
    worst = torch.full((len(layer_numbers), 3), -torch.inf, dtype=torch.float64, device=device)
    for memory in memories:
        row = list(layer_numbers).index(memory.layer_number)
        values = memory.statistics_on_device()
        sums[row] = torch.cat([values, values.new_ones(1)])
        loss = values[STATISTICS.index("memorization_loss")]
        weights = memory.fast_weights()
        finite = torch.stack([is_finite(table) for table in weights.tables().values()]).all()
        # NaN does not survive a maximum on every backend, so it travels as a flag.
        worst[row] = torch.stack(
            [
                torch.nan_to_num(loss, nan=0.0),
                (~torch.isfinite(loss)).double(),
                (~finite).double(),
            ]
        )
    if world_size() > 1:
        dist.all_reduce(sums)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    layers, losses, finite_tables = {}, {}, {}
    for number, found in zip(layer_numbers, torch.cat([sums, worst], dim=1).tolist(), strict=True):
        total, bad = found[: width + 1], found[width + 1 :]
        layers[number] = LayerStatistics(*(value / max(1.0, total[width]) for value in total[:width]))
        losses[number] = float("nan") if bad[1] > 0 else bad[0]
        finite_tables[number] = bad[2] <= 0
    return MemoryReport(layers, losses, finite_tables)
