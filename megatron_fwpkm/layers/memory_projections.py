"""The linear layers of a memory that can come from another library: of queries, of values and of the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from .table_sharding import ColumnSharding

MakeProjection = Callable[[TransformerConfig, int, int, ColumnSharding], nn.Module]
"""From the configuration, the inputs and outputs of all tensor-parallel ranks together, and their sharding to a module
with `weight` and `bias`. Like Megatron's linears it returns its output and a bias that is still to be added, or None.
Its weights need no values: the memory draws them."""


@dataclass(frozen=True)
class MemoryProjections:
    """What a memory builds its linears from; its norms and its gate, which has one output, are always its own.

    Attributes:
        query: from whole sequences, with the same weights and outputs on every rank.
        value: from whole sequences to this rank's columns.
        output: from this rank's columns; sums over ranks, and with sequence parallelism keeps a shard.
    """

    query: MakeProjection
    value: MakeProjection
    output: MakeProjection


class ReplicatedLinear(nn.Linear):
    """A linear layer that every rank has whole."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Map [..., inputs] to [..., outputs]."""
        return super().forward(x), None


class ColumnLinear(nn.Linear):
    """A linear layer of which this rank has some outputs."""

    sharding: ColumnSharding

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Map whole [..., inputs], alike on all ranks, to this rank's [..., outputs]."""
        return super().forward(self.sharding.copy_to_shards(x)), None


class RowLinear(nn.Linear):
    """A linear layer of which this rank has some inputs."""

    sharding: ColumnSharding
    sequence_parallel: bool

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Map this rank's [s, b, inputs] to the sum over ranks, [s, b, outputs] or a shard of it, and the bias."""
        partial = F.linear(x, self.weight)
        return self.sharding.sum_rows(partial, self.sequence_parallel), self.bias


def _replicated(config: TransformerConfig, inputs: int, outputs: int, sharding: ColumnSharding) -> nn.Module:
    return nn.utils.skip_init(ReplicatedLinear, inputs, outputs, dtype=config.params_dtype)


def _columns(config: TransformerConfig, inputs: int, outputs: int, sharding: ColumnSharding) -> nn.Module:
    linear = nn.utils.skip_init(ColumnLinear, inputs, outputs // sharding.size, dtype=config.params_dtype)
    linear.sharding = sharding
    return linear


def _rows(config: TransformerConfig, inputs: int, outputs: int, sharding: ColumnSharding) -> nn.Module:
    linear = nn.utils.skip_init(RowLinear, inputs // sharding.size, outputs, dtype=config.params_dtype)
    linear.sharding, linear.sequence_parallel = sharding, config.sequence_parallel
    return linear


LOCAL_PROJECTIONS = MemoryProjections(query=_replicated, value=_columns, output=_rows)
"""In torch. `skip_init`: without torch's own initialisation, which draws as many numbers as this rank has columns."""
