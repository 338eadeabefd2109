"""The only collectives of the memory: its values table is spread over tensor-parallel ranks by columns (DESIGN 3).

What every rank computes alike (queries, slots, gates) is replicated, values, targets and the output before its
projection are columns. With one rank every function here returns its input.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributed import ProcessGroup


class _CopyToShards(torch.autograd.Function):
    """Identity; backward sums over ranks.

    Megatron's own mapping reduces ``grad.contiguous()`` and returns ``grad``: right for contiguous gradients only, and
    it overwrites them.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum(gradients[0], ctx.group), None  # type: ignore[attr-defined]


class _SumOfShards(torch.autograd.Function):
    """Sum over ranks; in backward the identity, for a result of which every rank makes the same use."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: ProcessGroup) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _sum(x: Tensor, group: ProcessGroup) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total, group=group)
    return total


class ColumnSharding:
    """This rank's columns of a table of ``num_columns``, and the sums that cross ranks.

    Implements ``megatron_fwpkm.ops.TableSharding``.

    Args:
        group: the tensor-parallel ranks.
        num_columns: columns of the whole table.

    Raises:
        ValueError: the ranks do not divide the columns.
    """

    def __init__(self, group: ProcessGroup, num_columns: int) -> None:
        self.group = group
        self.size: int = group.size()
        if num_columns % self.size:
            raise ValueError(
                f"--fwpkm-value-dim {num_columns} cannot be spread over --tensor-model-parallel-size {self.size}: "
                "make the value dimension a multiple of it"
            )
        self.num_columns = num_columns
        width = num_columns // self.size
        self.columns = slice(group.rank() * width, (group.rank() + 1) * width)

    def copy_to_shards(self, x: Tensor) -> Tensor:
        """Return ``x``; in backward, sum its gradient over the ranks, each of which used it for its columns."""
        return _CopyToShards.apply(x, self.group) if self.size > 1 else x

    def sum_columns(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over the ranks, without gradient."""
        return _sum(x, self.group) if self.size > 1 else x

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over the ranks; in backward, sum the gradients of all its users, too."""
        if self.size == 1:
            return x
        return _CopyToShards.apply(_SumOfShards.apply(x, self.group), self.group)

    def gather_sequence(self, x: Tensor) -> Tensor:
        """All-gather sequence shards [s/tp, ...] to [s, ...]; backward cuts the gradient, complete on all."""
        if self.size == 1:
            return x
        return gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False, group=self.group)

    def sum_rows(self, x: Tensor, sequence_parallel: bool) -> Tensor:
        """Sum what the ranks made of their columns, [s, ...]; with sequence parallelism keep a shard [s/tp, ...]."""
        if self.size == 1:
            return x
        if sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(x, self.group)
        return _SumOfShards.apply(x, self.group)


def standardize(x: Tensor, sharding: ColumnSharding) -> Tensor:
    """z-score over all columns with the unbiased standard deviation plus 1e-6 (DESIGN section 2).

    Args:
        x: [..., this rank's columns].
        sharding: how the columns are spread; one sum of two numbers per token crosses ranks.

    Returns:
        Like ``x``, differentiable.
    """
    if sharding.size == 1:
        std, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return (x - mean) / (std + 1e-6)
    n = sharding.num_columns
    sums = sharding.total(torch.stack([x.sum(-1), x.square().sum(-1)], dim=-1))
    mean = sums[..., :1] / n
    variance = (sums[..., 1:] - n * mean.square()) / (n - 1)
    return (x - mean) / (variance.clamp(min=0).sqrt() + 1e-6)


def rms_normalize_columns(x: Tensor, eps: float, sharding: ColumnSharding) -> Tensor:
    """``x * rsqrt(mean(x^2) + eps)`` with the mean over all columns; one sum of a number per token crosses ranks."""
    mean_square = sharding.total(x.square().sum(-1, keepdim=True)) / sharding.num_columns
    return x * torch.rsqrt(mean_square + eps)
