"""The only collectives of the memory: values are spread over ranks by columns, sub-keys by rows (DESIGN 3).

Over tensor-parallel ranks what every rank computes alike (queries, slots, gates) is replicated; values, targets and the
output before its projection are columns. Over context-parallel ranks everything is made for a rank's own tokens; then
queries and gates are gathered, values change from some tokens' columns to all tokens' fewer columns, and what was read
changes back. With one rank every function here returns its input.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel.mappings import (
    all_to_all,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    scatter_to_tensor_model_parallel_region,
)
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributed import ProcessGroup


class _CopyToShards(torch.autograd.Function):
    """Identity; backward sums over ranks.

    Megatron's own mapping reduces `grad.contiguous()` and returns `grad`: right for contiguous gradients only, and
    it overwrites them.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: ProcessGroup) -> Tensor:
        """The tensor itself."""
        ctx.group = group  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        """The sum of the gradients over the group."""
        return _sum(gradients[0], ctx.group), None  # type: ignore[attr-defined]


class _SumOfShards(torch.autograd.Function):
    """Sum over ranks; in backward the identity, for a result of which every rank makes the same use."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: ProcessGroup) -> Tensor:
        """The sum over the group."""
        return _sum(x, group)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient itself."""
        return gradients[0], None


def _sum(x: Tensor, group: ProcessGroup) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total, group=group)
    return total


class ContextSharding:
    """A sequence spread over context-parallel ranks: of 2 * size pieces rank r has piece r and the r-th from the end.

    Args:
        group: the context-parallel ranks.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.size: int = group.size()
        self.rank: int = group.rank()
        # Lists, for an index would have to go to the device, and the host would wait for it.
        self._pieces = [piece for rank in range(self.size) for piece in (rank, 2 * self.size - 1 - rank)]
        self._places = sorted(range(2 * self.size), key=lambda place: self._pieces[place])

    def gather_tokens(self, x: Tensor) -> Tensor:
        """All-gather [s/cp, ...] to [s, ...] in the text's order; backward cuts the gradient, complete on all ranks."""
        return self._gather(x, sum_gradients=False)

    def gather_for_own_tokens(self, x: Tensor) -> Tensor:
        """All-gather [s/cp, ...] to [s, ...] for the use of this rank's tokens only; backward sums the gradients."""
        return self._gather(x, sum_gradients=True)

    def tokens_to_columns(self, x: Tensor) -> Tensor:
        """All-to-all from this rank's tokens [s/cp, b, w] to all tokens in the text's order, [s, b, w/cp]."""
        if self.size == 1:
            return x
        parts = x.unflatten(-1, (self.size, -1)).permute(2, 0, 1, 3).flatten(0, 1)
        return self._to_text_order(all_to_all(self.group, parts))

    def columns_to_tokens(self, x: Tensor) -> Tensor:
        """Undo `tokens_to_columns`: [s, b, w/cp] to [s/cp, b, w]."""
        if self.size == 1:
            return x
        parts = all_to_all(self.group, _in_order(x, self._pieces))
        return parts.unflatten(0, (self.size, -1)).permute(1, 2, 0, 3).flatten(2, 3)

    def own_tokens(self, x: Tensor) -> Tensor:
        """This rank's tokens [s/cp, ...] of [s, ...], alike on all ranks; backward gathers the gradient."""
        return _OwnTokens.apply(x, self) if self.size > 1 else x

    def own_pieces(self, length: int) -> tuple[slice, slice]:
        """Where this rank's two pieces stand in a sequence of `length` tokens."""
        width = length // (2 * self.size)
        first, second = self._pieces[2 * self.rank : 2 * self.rank + 2]
        return slice(first * width, (first + 1) * width), slice(second * width, (second + 1) * width)

    def _gather(self, x: Tensor, sum_gradients: bool) -> Tensor:
        if self.size == 1:
            return x
        gathered = gather_from_sequence_parallel_region(x, sum_gradients, self.group)
        return self._to_text_order(gathered)

    def _to_text_order(self, x: Tensor) -> Tensor:
        """[s, ...] with one rank's pieces after the other's, to the order of the text."""
        return _in_order(x, self._places)


def _in_order(x: Tensor, order: list[int]) -> Tensor:
    """[s, ...] as pieces of equal length, in another order."""
    pieces = x.unflatten(0, (len(order), -1)).unbind()
    return torch.cat([pieces[number] for number in order])


class _OwnTokens(torch.autograd.Function):
    """A rank's tokens of a whole sequence; backward puts everyone's gradients together."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, context: ContextSharding) -> Tensor:
        """Both pieces, one after the other."""
        ctx.context = context  # type: ignore[attr-defined]
        return torch.cat([x[piece] for piece in context.own_pieces(len(x))])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradients of all tokens, in the text's order."""
        return ctx.context.gather_tokens(gradients[0].contiguous()), None  # type: ignore[attr-defined]


class RankSharding:
    """The ranks that share one memory, and the collectives between them.

    Implements `megatron_fwpkm.ops.TableSharding`.

    Attributes:
        rank: number of this rank's part; context-parallel ranks cut every tensor-parallel rank's part again.
        size: number of parts.

    Args:
        group: the ranks that share the memory.
        context: the context-parallel ranks among them.
    """

    def __init__(self, group: ProcessGroup, context: ContextSharding) -> None:
        self.group = group
        self.size: int = group.size()
        self._tensor_size, self._context_size = self.size // context.size, context.size
        # Megatron numbers tensor-parallel ranks first.
        self.rank: int = group.rank() % self._tensor_size * context.size + context.rank

    def part(self, flag: str, count: int) -> slice:
        """Which of `count` things are this rank's.

        Raises:
            ValueError: the ranks do not divide what `flag` says.
        """
        if count % self.size:
            over = f"--tensor-model-parallel-size {self._tensor_size}"
            over += f" times --context-parallel-size {self._context_size}" if self._context_size > 1 else ""
            lower = count // self.size * self.size
            near = f"{lower} or {lower + self.size}" if lower else f"{self.size}"
            raise ValueError(f"{flag} {count} is not divisible by {over}: use {near}")
        width = count // self.size
        return slice(self.rank * width, (self.rank + 1) * width)

    def copy_to_shards(self, x: Tensor) -> Tensor:
        """Return `x`; in backward, sum its gradient over the ranks, each of which used it for its columns."""
        return _CopyToShards.apply(x, self.group) if self.size > 1 else x

    def sum_shards(self, x: Tensor) -> Tensor:
        """Return the sum of `x` over the ranks, without gradient."""
        return _sum(x, self.group)

    def gather(self, x: Tensor) -> Tensor:
        """Return every rank's `x` [...] in the order of the parts, [size, ...], without gradient."""
        everyone = x.new_empty(self.size * x.numel())
        torch.distributed.all_gather_into_tensor(everyone, x.detach().flatten(), group=self.group)
        by_group = everyone.view(self._context_size, self._tensor_size, *x.shape)
        return by_group.transpose(0, 1).flatten(0, 1)


class MemorySharding(RankSharding):
    """This rank's part of the tables of one product key memory.

    Attributes:
        rows: of every list of sub-keys.
        columns: of the values.

    Args:
        group: the ranks that share the memory.
        context: the context-parallel ranks among them.
        num_subkeys: rows of a whole list.
        value_dim: columns of the whole values table.

    Raises:
        ValueError: the ranks do not divide the sub-keys or the columns.
    """

    def __init__(self, group: ProcessGroup, context: ContextSharding, num_subkeys: int, value_dim: int) -> None:
        super().__init__(group, context)
        self.rows = self.part("--fwpkm-num-subkeys", num_subkeys)
        self.columns = self.part("--fwpkm-value-dim", value_dim)


class ColumnSharding:
    """Columns spread over tensor-parallel ranks, and the sums that cross ranks.

    Implements `megatron_fwpkm.ops.sharding.ColumnSums`.

    Args:
        group: the ranks, each of which has as many columns.
        num_columns: columns of all ranks together.
    """

    def __init__(self, group: ProcessGroup, num_columns: int) -> None:
        self.group = group
        self.size: int = group.size()
        self.num_columns = num_columns

    def copy_to_shards(self, x: Tensor) -> Tensor:
        """Return `x`; in backward, sum its gradient over the ranks, each of which used it for its columns."""
        return _CopyToShards.apply(x, self.group) if self.size > 1 else x

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of `x` over the ranks; in backward, sum the gradients of all its users, too."""
        if self.size == 1:
            return x
        return _CopyToShards.apply(_SumOfShards.apply(x, self.group), self.group)

    def sum_shards(self, x: Tensor) -> Tensor:
        """Return the sum of `x` over the ranks, without gradient."""
        return _sum(x, self.group) if self.size > 1 else x

    def gather_columns(self, x: Tensor) -> Tensor:
        """All-gather columns [..., w/tp] to [..., w]; backward cuts the gradient, complete on all ranks."""
        return gather_from_tensor_model_parallel_region(x, self.group) if self.size > 1 else x

    def own_columns(self, x: Tensor) -> Tensor:
        """This rank's columns [..., w/tp] of [..., w], alike on all; backward gathers the gradient."""
        return scatter_to_tensor_model_parallel_region(x, self.group) if self.size > 1 else x

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
