"""The steps of the sub-keys' chain as launches of `key_kernels.py`; every shape is known without the device.

Shapes: G = heads * 2 groups, M tokens of a piece, n sub-keys of a whole list, n' of them here, k = topk,
h = key_dim / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...product_key.reference import ENTROPY_EPSILON, IDW_EPSILON
from ...product_key.triton.select import rows_of
from .key_kernels import (
    finish_kernel,
    pull_gradient_kernel,
    pull_kernel,
    reader_sum_kernel,
    spread_kernel,
    tile_kernel,
    token_backward_kernel,
)

TILE = 64
"""Most readers of a sub-key that one program sums."""
_LOADS = 8
"""Rows of a tile that a program loads at once."""
_NUMBERS = 2048
"""Numbers that the four warps of a program hold of what they sum, 16 to a thread."""
_READERS = 512
"""Readers of a sub-key whose numbers are loaded at once."""


@dataclass(frozen=True)
class KeyShape:
    """What all launches of a call have in common.

    Attributes:
        topk: k.
        score: ``idw`` or ``dot_product``.
        num_subkeys: n of a whole list.
        first_key: number of the first sub-key here.
        count: n', sub-keys of a list here.
        half_dim: h.
    """

    topk: int
    score: str
    num_subkeys: int
    first_key: int
    count: int
    half_dim: int

    @property
    def idw(self) -> bool:
        """Whether distances are scored; dot products otherwise."""
        return self.score != "dot_product"

    def per_token(self) -> dict[str, Any]:
        """Constants of the kernels that hold a token's k numbers, for a block of tokens."""
        padded = triton.next_power_of_2(self.topk)
        return {"K": self.topk, "K_PADDED": padded, "ROWS": max(1, 256 // padded), "IDW": self.idw}

    def per_row(self) -> dict[str, Any]:
        """Constants of the kernels that hold k rows of a token's sub-keys."""
        padded = triton.next_power_of_2(self.topk)
        block = min(triton.next_power_of_2(self.half_dim), _NUMBERS // padded)
        return {
            "COUNT": self.count,
            "H": self.half_dim,
            "BLOCK": block,
            "K": self.topk,
            "K_PADDED": padded,
            "ROWS": _NUMBERS // (padded * block),
            "IDW": self.idw,
        }

    def per_segment(self, groups: int) -> dict[str, Any]:
        """Constants of the kernels that sum the readers of a sub-key, of G groups."""
        block = min(triton.next_power_of_2(self.half_dim), _NUMBERS // _LOADS)
        return {
            "COUNT": self.count,
            "N": self.num_subkeys,
            "SEGMENTS": groups * self.count,
            "H": self.half_dim,
            "BLOCK": block,
            "TILE": TILE,
            "ROWS": _NUMBERS // (_LOADS * block),
            "LOADS": _LOADS,
        }

    def per_tile(self, groups: int) -> dict[str, Any]:
        """More constants of the kernel that sums tiles: how to find a tile's segment and its tokens."""
        return {"STEPS": (groups * self.count - 1).bit_length(), "K": self.topk, "IDW": self.idw}


def reader_sum_constants(num_subkeys: int, heads: int) -> dict[str, Any]:
    """Constants of the kernel that sums one number per reader of a sub-key."""
    return {"HEADS": heads, "N": num_subkeys, "ROWS": _NUMBERS // _READERS, "BLOCK": _READERS}


def launch(warps: int) -> dict[str, Any]:
    """How these kernels are launched: products are rounded before they are added, as in the interpreter."""
    return {"num_warps": warps, "enable_fp_fusion": False}


class Readers(NamedTuple):
    """The pairs of a piece by sub-key.

    Attributes:
        order: [G * M * k] pairs sorted by group and sub-key, tokens ascending.
        starts: [G * n + 1] where each sub-key's readers begin.
    """

    order: Tensor
    starts: Tensor


class ReaderSorter:
    """Sorts the pairs of the pieces of a call by sub-key.

    Args:
        groups: G.
        num_subkeys: n of a whole list.
        device: where the indices will be.
    """

    def __init__(self, groups: int, num_subkeys: int, device: torch.device) -> None:
        segments = groups * num_subkeys
        # A radix sort's time is that of its digits.
        dtype = torch.int16 if segments < torch.iinfo(torch.int16).max else torch.int32
        self._segments = torch.arange(segments + 1, device=device, dtype=dtype)
        self._offsets = self._segments[:-1:num_subkeys].view(-1, 1, 1)

    def __call__(self, indices: Tensor) -> Readers:
        """Sort the pairs with these sub-keys [G, M, k], int32, counted over whole lists."""
        keys, order = (indices.to(self._offsets.dtype) + self._offsets).flatten().sort(stable=True)
        return Readers(order, torch.searchsorted(keys, self._segments))


def mean_over_readers(weights: Tensor, readers: Readers, num_subkeys: int, num_readers: int) -> Tensor:
    """Sum of the numbers [G, M, k] of a sub-key's pairs, heads pooled, over the number of readers: [2, n]."""
    means = weights.new_empty(2, num_subkeys)
    constants = reader_sum_constants(num_subkeys, weights.shape[0] // 2)
    reader_sum_kernel[(triton.cdiv(num_subkeys, constants["ROWS"]), 2)](
        weights, *readers, means, num_readers, **constants, **launch(4)
    )
    return means


def pulls_of(
    indices: Tensor,
    costs: Tensor,
    probabilities: Tensor,
    means: Tensor,
    step: Tensor,
    num_readers: int,
    shape: KeyShape,
) -> Tensor:
    """c [G, M, k]: how strongly every kept pair moves its sub-key along its direction."""
    groups, tokens, _ = costs.shape
    pulls = torch.empty_like(costs)
    constants = shape.per_token()
    pull_kernel[(triton.cdiv(tokens, constants["ROWS"]), groups)](
        indices,
        costs,
        probabilities,
        means,
        step,
        pulls,
        tokens,
        num_readers,
        EPSILON=IDW_EPSILON,
        ENTROPY_EPSILON=ENTROPY_EPSILON,
        N=shape.num_subkeys,
        **constants,
        **launch(1),
    )
    return pulls


def sum_per_sub_key(
    weights: Tensor,
    queries: Tensor,
    sub_keys: Tensor,
    readers: Readers,
    shape: KeyShape,
    *,
    base: Tensor | None,
    pulls: Tensor | None = None,
) -> Tensor:
    """base * (1 + sum of pulls) - sum of weights * direction over every sub-key's readers.

    Args:
        weights: [G, M, k].
        queries: [G, M, h]; a direction is q - K, for dot products q.
        sub_keys: [G, n', h].
        readers: the piece's sorted pairs.
        shape: what the call has in common.
        base: [G, n', h], or None for 0.
        pulls: [G, M, k], or None for 0.

    Returns:
        [G, n', h].
    """
    groups, count, half_dim = sub_keys.shape
    segments = groups * count
    tiles = weights.numel() // TILE + segments
    queries, group_rows, token_rows = rows_of(queries)
    partials = sub_keys.new_empty(tiles, half_dim)
    totals = None if pulls is None else sub_keys.new_empty(tiles)
    out = torch.empty_like(sub_keys, memory_format=torch.contiguous_format)
    constants = shape.per_segment(groups)
    blocks = triton.cdiv(half_dim, constants["BLOCK"])
    tile_kernel[(triton.cdiv(tiles, constants["ROWS"]), blocks)](
        weights,
        queries,
        sub_keys,
        pulls,
        *readers,
        partials,
        totals,
        weights.shape[1],
        group_rows,
        token_rows,
        shape.first_key,
        **shape.per_tile(groups),
        TOTALS=pulls is not None,
        **constants,
        **launch(4),
    )
    finish_kernel[(triton.cdiv(segments, constants["ROWS"]), blocks)](
        base,
        readers.starts,
        partials,
        totals,
        out,
        shape.first_key,
        ADDED=base is not None,
        TOTALS=pulls is not None,
        **constants,
        **launch(4),
    )
    return out


def pull_gradients(queries: Tensor, sub_keys: Tensor, grad_moved: Tensor, indices: Tensor, shape: KeyShape) -> Tensor:
    """gamma [G, M, k], the gradient of c, of the sub-keys that are here; 0 for others.

    Args:
        queries: [G, M, h].
        sub_keys: [G, n', h] before the piece.
        grad_moved: [G, n', h], gradient of the sub-keys after it.
        indices: [G, M, k] int32.
        shape: what the call has in common.
    """
    groups, tokens, _ = indices.shape
    queries, group_rows, token_rows = rows_of(queries)
    gradients = sub_keys.new_empty(indices.shape)
    constants = shape.per_row()
    pull_gradient_kernel[(triton.cdiv(tokens, constants["ROWS"]), groups)](
        queries,
        sub_keys,
        grad_moved,
        indices,
        gradients,
        tokens,
        group_rows,
        token_rows,
        shape.first_key,
        **constants,
        **launch(4),
    )
    return gradients


def spreads_of(
    costs: Tensor, probabilities: Tensor, grad_pulls: Tensor, step: Tensor, num_readers: int, shape: KeyShape
) -> Tensor:
    """[G, M, k]: what every pair adds to the gradient of its sub-key's slope u."""
    groups, tokens, _ = costs.shape
    spreads = torch.empty_like(costs)
    constants = shape.per_token()
    spread_kernel[(triton.cdiv(tokens, constants["ROWS"]), groups)](
        costs,
        probabilities,
        grad_pulls,
        step,
        spreads,
        tokens,
        num_readers,
        EPSILON=IDW_EPSILON,
        **constants,
        **launch(1),
    )
    return spreads


class Movement(NamedTuple):
    """What backward needs to know of a movement of the sub-keys.

    Attributes:
        probabilities: [G, M, k].
        pulls: [G, M, k].
        grad_pulls: [G, M, k].
        means: [2, n] mean probability.
        grad_slopes: [2, n] mean spread.
        step: [1].
        grad_moved: [G, n', h].
        num_readers: R.
    """

    probabilities: Tensor
    pulls: Tensor
    grad_pulls: Tensor
    means: Tensor
    grad_slopes: Tensor
    step: Tensor
    grad_moved: Tensor
    num_readers: int


def token_backward(
    queries: Tensor,
    sub_keys: Tensor,
    indices: Tensor,
    costs: Tensor,
    positions: Tensor,
    grad_scores: Tensor,
    grad_queries: Tensor,
    movement: Movement | None,
    shape: KeyShape,
) -> Tensor:
    """Add the gradients of a piece's queries to ``grad_queries``.

    Args:
        queries: [G, M, h].
        sub_keys: [G, n', h] before the piece.
        indices: [G, M, k] int32.
        costs: [G, M, k].
        positions: [2, M, heads, k] int32.
        grad_scores: [M, heads, k] gradients of the slots' scores.
        grad_queries: [G, M, h], a part of a contiguous [G, stream, h].
        movement: how the sub-keys moved at the end of the piece; None if they did not or nothing depends on it.
        shape: what the call has in common.

    Returns:
        Weights [G, M, k]: the gradient of a sub-key is minus the sum of weight * direction.
    """
    groups, tokens, _ = indices.shape
    queries, group_rows, token_rows = rows_of(queries)
    weights = torch.empty_like(costs)
    tensors = (None,) * 7 if movement is None else movement[:7]
    constants = shape.per_row()
    token_backward_kernel[(triton.cdiv(tokens, constants["ROWS"]), groups)](
        queries,
        sub_keys,
        indices,
        costs,
        positions,
        grad_scores,
        *tensors,
        grad_queries,
        weights,
        tokens,
        group_rows,
        token_rows,
        shape.first_key,
        grad_queries.stride(0) // shape.half_dim,
        1 if movement is None else movement.num_readers,
        EPSILON=IDW_EPSILON,
        ENTROPY_EPSILON=ENTROPY_EPSILON,
        N=shape.num_subkeys,
        MOVED=movement is not None,
        **constants,
        **launch(4),
    )
    return weights
