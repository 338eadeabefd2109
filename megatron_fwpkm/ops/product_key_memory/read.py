"""The reads of a static product key memory, with gradients that touch only what was read (README.md).

Plain torch, which exports ship. Shapes: T tokens, H heads, G = 2 * H half-heads, n sub-keys per half, h = key_dim / 2,
k slots per head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..precision import full_precision
from ..product_key.selection import select_slots, select_sub_keys

GradientSink = Callable[[], Tensor | None]
"""Called in backward: the tensor to which the gradient of the values is to be added, None to get it as a tensor."""

_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 24}
"""About how many numbers of sub-keys or rows are gathered at once; longer inputs are done in blocks of tokens. On a CPU
they stay in its cache, a GPU wants few launches."""


def choose_slots(queries: Tensor, sub_keys: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The best slots of every head, and their weights, a softmax over the slots of the head.

    Scores are dot products, those of a slot's two sub-keys added. Equal scores go to the lowest slot. Gradients flow
    through the weights, not through the choice.

    Args:
        queries: [T, H, key_dim].
        sub_keys: [H, 2, n, key_dim / 2].
        topk: k.

    Returns:
        slot indices and slot weights [T, H, k], best first.
    """
    halves = queries.unflatten(-1, (2, -1)).permute(1, 2, 0, 3).flatten(0, 1)
    with full_precision(queries.device):
        scores, slots = _SlotScores.apply(halves.contiguous(), sub_keys.flatten(0, 1), topk)
        return slots, scores.softmax(-1)


def sum_rows(values: Tensor, slots: Tensor, weights: Tensor, sink: GradientSink | None = None) -> Tensor:
    """The weighted sum of the rows that all heads of a token chose.

    Args:
        values: [n * n, width], in any floating-point type.
        slots: [T, H, k].
        weights: [T, H, k].
        sink: where the gradient of the values goes. With a tensor, the rows that were read are added to it, and
            `values.grad` is an empty sparse tensor, which tells that it has been there.

    Returns:
        [T, width] in the type of the values.
    """
    with torch.autocast(values.device.type, enabled=False):
        read: Tensor = _SumOfRows.apply(values, slots.flatten(1), weights.flatten(1), sink)
    return read


def _blocks(tokens: int, per_token: int, device: torch.device) -> list[slice]:
    """Slices of tokens of which each has about `_BLOCK_ELEMENTS` numbers; one where there are no tokens."""
    step = max(1, _BLOCK_ELEMENTS.get(device.type, 1 << 24) // per_token)
    return [slice(start, start + step) for start in range(0, max(1, tokens), step)]


class _SlotScores(torch.autograd.Function):
    """halves [G, T, h], sub_keys [G, n, h] -> scores [T, H, k] and slots [T, H, k] of the best slots."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor, sub_keys: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """Choose; the scores are sums of products of single numbers and do not depend on the batch."""
        num_subkeys, found = sub_keys.shape[1], []
        for block in _blocks(halves.shape[1], halves.shape[0] * topk * halves.shape[2], halves.device):
            kept = select_sub_keys(halves[:, block], sub_keys, topk, "dot_product")
            found.append(select_slots(kept, num_subkeys, "dot_product"))
        scores = torch.cat([choice.scores for choice in found])
        slots = torch.cat([choice.slots for choice in found])
        ctx.save_for_backward(halves, sub_keys, slots)
        ctx.mark_non_differentiable(slots)
        return scores, slots

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        """A slot's gradient is that of both its sub-keys; they stand in a matrix of few numbers, [T, n]."""
        halves, sub_keys, slots = ctx.saved_tensors
        num_subkeys = sub_keys.shape[1]
        of_queries, of_keys = torch.empty_like(halves), torch.zeros_like(sub_keys)
        chosen = torch.stack([slots // num_subkeys, slots % num_subkeys], 2).flatten(1, 2).transpose(0, 1)
        by_half = gradient.repeat_interleave(2, dim=1).transpose(0, 1)
        topk, groups = slots.shape[2], len(sub_keys)
        with full_precision(halves.device):
            for block in _blocks(halves.shape[1], groups * max(num_subkeys, topk * topk), halves.device):
                dense = _spread(chosen[:, block], by_half[:, block], num_subkeys)
                of_queries[:, block] = torch.bmm(dense, sub_keys)
                of_keys += torch.bmm(dense.transpose(1, 2), halves[:, block])
        return of_queries, of_keys, None


def _spread(chosen: Tensor, gradient: Tensor, num_subkeys: int) -> Tensor:
    """Gradients [G, T, k] of the slots at the sub-keys they have `chosen` [G, T, k], added up: [G, T, n].

    Slots share sub-keys. Equal ones are added at the first of them, always in the same order, and so nothing is written
    to one place twice, which on a GPU would come in any order.
    """
    same = chosen.unsqueeze(-1) == chosen.unsqueeze(-2)
    total = (same * gradient.unsqueeze(-2)).sum(-1)
    dense = gradient.new_zeros(*gradient.shape[:2], num_subkeys)
    return dense.scatter_(-1, chosen, total)  # equal sub-keys write equal numbers


class _SumOfRows(torch.autograd.Function):
    """values [n * n, width], slots [T, H * k], weights [T, H * k] -> [T, width]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, slots: Tensor, weights: Tensor, sink: GradientSink | None) -> Tensor:
        """Read and add; torch's kernel keeps no row."""
        ctx.save_for_backward(values, slots, weights)
        ctx.sink = sink
        return F.embedding_bag(slots, values, per_sample_weights=weights.to(values.dtype), mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        """Weights: products with the rows again. Values: weighted gradients, added row by row."""
        values, slots, weights = ctx.saved_tensors
        gradient = gradient.to(weights.dtype)
        of_weights = torch.empty_like(weights)
        sink = ctx.sink() if ctx.sink is not None and ctx.needs_input_grad[0] else None
        of_values = sink
        if of_values is None and ctx.needs_input_grad[0]:
            of_values = torch.zeros(values.shape, dtype=weights.dtype, device=values.device)
        with full_precision(values.device):
            for block in _blocks(len(slots), slots.shape[1] * values.shape[1], values.device):
                rows = F.embedding(slots[block], values).to(weights.dtype)
                of_weights[block] = torch.bmm(rows, gradient[block].unsqueeze(-1)).squeeze(-1)
                if of_values is not None:
                    additions = torch.mul(weights[block].unsqueeze(-1), gradient[block].unsqueeze(1), out=rows)
                    _add_rows(of_values, slots[block].flatten(), additions.flatten(0, 1))
        if sink is not None:
            of_values = torch.zeros(values.shape, dtype=values.dtype, device=values.device, layout=torch.sparse_coo)
        elif of_values is not None:
            of_values = of_values.to(values.dtype)
        return of_values, None, of_weights, None


def _add_rows(table: Tensor, rows: Tensor, additions: Tensor) -> None:
    """Add [R, width] to rows [R] of a table, which may repeat, in the same order every time."""
    additions = additions.to(table.dtype)
    if table.is_cuda:
        table.index_put_((rows,), additions, accumulate=True)  # sorts them; index_add_ takes them as they come
    else:
        table.index_add_(0, rows, additions)
