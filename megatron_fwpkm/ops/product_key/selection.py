"""Product-key selection that is fast (one matrix product) and exact (distances by differences, ties settled).

Shapes: G = heads * 2 groups (one list of n sub-keys each), M tokens, k = topk, h = key_dim / 2.

A matrix product ranks all sub-keys, but its rounding depends on the shape of the batch, and near a key the expanded
square loses all digits (DESIGN 2.1). So it only proposes: the kept k are scored again by differences, and a token
whose k-th and next candidate are closer than rounding can tell, or whose kept ones are not in order, is ranked by
differences over all candidates that rounding leaves. The result does not depend on how tokens are batched, and equal
scores go to the lowest index.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .epsilons import IDW_EPSILON

_BLOCK_ELEMENTS = 1 << 24
"""Largest number of scores that exist at once; longer inputs are done in blocks of tokens."""

BLOCK_NUMBERS = 1 << 17
"""Numbers of a temporary tensor that is made for a block of tokens at a time: they stay in a core's cache."""

_LARGE_PRODUCT = 1 << 25
"""Multiplications from which on oneDNN's own layouts pay: MKL uses half of the width of an AMD processor."""

_WORTH_PACKING = 1 << 15
"""Proposals from which on packing costs less than it saves."""

_BEYOND_FLOAT32 = 2.0**200
"""Stands for what is not finite, whose bits have no room for an index."""


class KeptSubKeys(NamedTuple):
    """The topk best sub-keys of every token and group, best first.

    Attributes:
        indices: [G, M, k] int64.
        costs: [G, M, k], what is minimised: the squared distance, or minus the dot product.
        directions: [G, M, k, h], queries less their kept sub-keys; None if not asked for.
    """

    indices: Tensor
    costs: Tensor
    directions: Tensor | None = None


class SlotChoice(NamedTuple):
    """The topk best pairs of sub-keys of every token, best first, as the memory goes on with them.

    Attributes:
        scores: [M, heads, k], sum of both halves' scores.
        slots: [M, heads, k] int64, slot = first sub-key * n + second sub-key.
        positions: where the pairs' sub-keys stand among the k kept ones of their halves; [2, M, heads, k] int32 from
            the kernels, [2, heads, M, k] int64 from torch.
        probabilities: [G, M, k] softmax of the kept scores, 0 for tokens that do not move sub-keys, who may also be
            missing at the end; None if not asked for.
    """

    scores: Tensor
    slots: Tensor
    positions: Tensor
    probabilities: Tensor | None


def number_in_groups(indices: Tensor, num_subkeys: int) -> Tensor:
    """Sub-keys [G, M, k] of lists of n each as rows of all lists, one after the other, [G * M * k]."""
    firsts = torch.arange(0, indices.shape[0] * num_subkeys, num_subkeys, device=indices.device)
    return (indices + firsts.view(-1, 1, 1)).flatten()


def gather_sub_keys(sub_keys: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` [G, M, k] of every group's list `sub_keys` [G, n, h], as [G, M, k, h]."""
    num_subkeys, half_dim = sub_keys.shape[1:]
    flat = number_in_groups(indices, num_subkeys)
    # With `out` given, index_select is faster on CPU than without, if its memory is new.
    rows = torch.index_select(sub_keys.reshape(-1, half_dim), 0, flat, out=sub_keys.new_empty(len(flat), half_dim))
    return rows.view(*indices.shape, half_dim)


def block_length(numbers: int, most: int, device: torch.device) -> int:
    """Tokens (or rows) of a block, of `most`, if each has so many numbers in a temporary tensor.

    Elsewhere than on a CPU all of them, for there a launch costs more than memory.
    """
    return max(1, BLOCK_NUMBERS // numbers) if device.type == "cpu" else max(1, most)


def _directions(queries: Tensor, sub_keys: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [G, M, h] less their sub-keys `indices` [G, M, k], and the squares of these [G, M, k].

    Block by block, so that a core's cache holds what is gathered, subtracted, squared and added.
    """
    tokens, topk, half_dim = *indices.shape[1:], queries.shape[2]
    directions, costs = queries.new_empty(*indices.shape, half_dim), queries.new_empty(indices.shape)
    step = block_length(topk * half_dim, tokens, queries.device)
    for group, rows in enumerate(sub_keys.contiguous()):
        for start in range(0, tokens, step):
            block = slice(start, start + step)
            part = directions[group, block]
            torch.index_select(rows, 0, indices[group, block].reshape(-1), out=part.view(-1, half_dim))
            torch.sub(queries[group, block].unsqueeze(1), part, out=part)
            torch.sum(part.square(), -1, out=costs[group, block])
    return directions, costs


def exact_costs(queries: Tensor, rows: Tensor, score: str) -> Tensor:
    """Cost of sub-keys `rows` [..., k, h] for `queries` [..., h], each on its own, without a matrix product."""
    if score == "dot_product":
        return -(rows * queries.unsqueeze(-2)).sum(-1)
    return (queries.unsqueeze(-2) - rows).square_().sum(-1)


def sort_key_dtype(lists: int) -> torch.dtype:
    """Whole numbers that count the sub-keys of all lists and are sorted fast: a radix sort's time is that of digits."""
    return torch.int16 if lists < torch.iinfo(torch.int16).max else torch.int32


def scores_of(costs: Tensor, score: str) -> Tensor:
    """Scores (larger is better) that belong to costs."""
    return -costs if score == "dot_product" else -torch.log(costs + IDW_EPSILON)


def _propose(queries: Tensor, sub_keys: Tensor, key_squares: Tensor, score: str) -> Tensor:
    """Approximate costs [G, M, n] of all sub-keys, for `idw` without the square of the query.

    That is the same for all sub-keys and does not change their order.
    """
    if score == "dot_product":
        return _products(queries, sub_keys.neg(), torch.zeros_like(key_squares))
    return _products(queries, sub_keys * -2, key_squares)


def _products(queries: Tensor, sub_keys: Tensor, added: Tensor) -> Tensor:
    """<q, K> of all pairs [G, M, n], and what is added for a sub-key [G, n]."""
    work = queries.shape[1] * sub_keys[0].numel()
    if queries.device.type != "cpu" or queries.dtype != torch.float32 or work < _LARGE_PRODUCT or not _has_onednn():
        return torch.baddbmm(added.unsqueeze(1), queries, sub_keys.transpose(1, 2))
    lists = zip(queries, sub_keys, added, strict=True)
    return torch.stack([F.linear(*(x.to_mkldnn() for x in tensors)).to_dense() for tensors in lists])


@cache
def _has_onednn() -> bool:
    """Whether torch can multiply by oneDNN, in full float32: no environment variable allows it less."""
    less = any(f"{name}_DEFAULT_FPMATH_MODE" in os.environ for name in ("ONEDNN", "DNNL"))
    return torch.backends.mkldnn.is_available() and not less


@cache
def _partitions_fast() -> bool:
    """Whether numpy partitions with vector instructions: since 2.0, and not on every processor."""
    return np.lib.NumpyVersion(np.__version__) >= "2.0.0" and "AVX" in torch.backends.cpu.get_cpu_capability()


def _partition(proposals: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """`_smallest` by numpy, which is twice as fast as torch: numbers are moved, and with each of them its index.

    A float32 leaves the last 29 bits of a float64 empty, and these do not change the order of different numbers.
    """
    wide = proposals.double().nan_to_num_(_BEYOND_FLOAT32, _BEYOND_FLOAT32, -_BEYOND_FLOAT32)
    packed = (wide.view(torch.int64) | torch.arange(proposals.shape[-1])).view(torch.float64).numpy()
    kept = np.partition(packed, topk - 1, axis=-1)[..., :topk]
    kept.sort(axis=-1)
    indices = torch.from_numpy(kept).view(torch.int64) & ((1 << 29) - 1)
    return proposals.gather(-1, indices), indices


def _smallest(proposals: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The `topk` smallest proposals of every token, best first, and their indices."""
    num_subkeys, heap = proposals.shape[-1], 64 * topk
    # From this width on, torch keeps the best in a heap, which is fast because most proposals never enter it.
    if proposals.device.type == "cpu" and num_subkeys < heap:
        if proposals.dtype == torch.float32 and proposals.numel() >= _WORTH_PACKING and _partitions_fast():
            return _partition(proposals, topk)
        if heap // 2 <= num_subkeys:
            # A NaN comes after all numbers, and equal ones do not leave the heap for later ones: what is added is never
            # taken.
            proposals = F.pad(proposals, (0, heap - num_subkeys), value=torch.nan)
    return proposals.topk(topk, dim=-1, largest=False)


def _rank_candidates(
    queries: Tensor, sub_keys: Tensor, group: Tensor, proposals: Tensor, most: Tensor, topk: int, score: str
) -> tuple[Tensor, Tensor]:
    """Rank by exact costs all sub-keys that rounding leaves in question; equal costs: lowest index first.

    Args:
        queries: [F, h].
        sub_keys: [G, n, h].
        group: [F], of every query.
        proposals: [F, n], approximate costs.
        most: [F, 1], the largest of them that a kept sub-key may have.
        topk: k.
        score: `idw` or `dot_product`.

    Returns:
        Indices and costs [F, k], best first.
    """
    width = max(topk, int(torch.count_nonzero(proposals <= most, dim=-1).amax()))
    candidates = proposals.topk(width, dim=-1, largest=False).indices.sort(dim=-1).values
    costs = exact_costs(queries, sub_keys[group.unsqueeze(1), candidates], score)
    costs, order = costs.sort(dim=-1, stable=True)
    return candidates.gather(-1, order[:, :topk]), costs[:, :topk]


def _select_block(queries: Tensor, sub_keys: Tensor, topk: int, score: str, with_directions: bool) -> KeptSubKeys:
    key_squares = sub_keys.square().sum(-1)
    query_squares = queries.square().sum(-1, keepdim=True)
    proposals = _propose(queries, sub_keys, key_squares, score)
    best, indices = _smallest(proposals, topk)
    # What both ways of computing a cost can be off by, with room to spare.
    norms = (query_squares * key_squares.amax(-1).view(-1, 1, 1)).sqrt_()
    doubt = norms * queries.shape[2] ** 0.5
    if score != "dot_product":
        doubt += (best[..., -1:] + query_squares).abs_()
    most = best[..., -1:] + doubt.mul_(4 * torch.finfo(queries.dtype).eps)
    if with_directions:
        directions, costs = _directions(queries, sub_keys, indices)
        kept = KeptSubKeys(indices, costs, directions)
    else:
        kept = KeptSubKeys(indices, exact_costs(queries, gather_sub_keys(sub_keys, indices), score))
    # Whether the best of those that are not kept might have been.
    close = proposals.scatter_(-1, indices, torch.inf).amin(-1) <= most.squeeze(-1)
    doubtful = (kept.costs[..., 1:] <= kept.costs[..., :-1]).any(-1).logical_or_(close)
    if bool(doubtful.any()):
        group, token = doubtful.nonzero(as_tuple=True)
        proposals.scatter_(-1, indices, best)
        step = max(1, _BLOCK_ELEMENTS // (sub_keys.shape[1] * sub_keys.shape[2]))
        for g, t in zip(group.split(step), token.split(step), strict=True):
            ranked = _rank_candidates(queries[g, t], sub_keys, g, proposals[g, t], most[g, t], topk, score)
            kept.indices[g, t], kept.costs[g, t] = ranked
            if kept.directions is not None:
                kept.directions[g, t] = queries[g, t].unsqueeze(1) - sub_keys[g.unsqueeze(1), ranked[0]]
    return kept


def _join_directions(blocks: list[KeptSubKeys]) -> Tensor | None:
    directions = [block.directions for block in blocks if block.directions is not None]
    return torch.cat(directions, 1) if directions else None


def select_sub_keys(
    queries: Tensor, sub_keys: Tensor, topk: int, score: str, with_directions: bool = False
) -> KeptSubKeys:
    """The `topk` best sub-keys of each list for every token; equal scores: lowest index first. No gradient.

    Args:
        queries: [G, M, h] halves of the queries.
        sub_keys: [G, n, h].
        topk: at most n.
        score: `idw` or `dot_product`.
        with_directions: queries less their kept sub-keys are asked for; `idw` only, which computes them anyway.

    Returns:
        Indices and costs, best first.
    """
    with torch.no_grad():
        step = max(1, _BLOCK_ELEMENTS // (sub_keys.shape[0] * sub_keys.shape[1]))
        parts = queries.split(step, dim=1)
        blocks = [_select_block(part, sub_keys, topk, score, with_directions) for part in parts]
        if len(blocks) == 1:
            return blocks[0]
        indices, costs = torch.cat([b.indices for b in blocks], 1), torch.cat([b.costs for b in blocks], 1)
        return KeptSubKeys(indices, costs, _join_directions(blocks))


@cache
def _pair_candidates(topk: int, device: torch.device) -> Tensor:
    """Positions (i, j) in two descending lists whose sum can be among the topk largest: (i + 1) * (j + 1) <= topk.

    Every other pair has at least topk pairs that are as good in both halves.

    Returns:
        [2, candidates]: first positions, then second ones.
    """
    with torch.inference_mode(False):
        pairs = [(i, j) for i in range(topk) for j in range(topk // (i + 1))]
        return torch.tensor(pairs, device=device).t().contiguous()


def select_slots(kept: KeptSubKeys, num_subkeys: int, score: str, moving: int = 0) -> SlotChoice:
    """The topk best slots of every token and head; equal sums: lowest slot first. No gradient.

    Args:
        kept: indices and costs [G, M, k] of the kept sub-keys, best first.
        num_subkeys: n of a whole list.
        score: `idw` or `dot_product`.
        moving: the first tokens, which move the sub-keys; probabilities are theirs, or None without any.
    """
    groups, tokens, topk = kept.costs.shape
    scores = scores_of(kept.costs, score)
    first_scores, second_scores = scores.view(groups // 2, 2, tokens, topk).unbind(1)
    first_keys, second_keys = kept.indices.view(groups // 2, 2, tokens, topk).unbind(1)
    candidates = _pair_candidates(topk, scores.device)
    sums = first_scores.index_select(-1, candidates[0]) + second_scores.index_select(-1, candidates[1])
    best, chosen = sums.topk(min(topk + 1, sums.shape[-1]), dim=-1)
    tied = (best[..., 1:] == best[..., :-1]).any(-1)
    best, chosen = best[..., :topk].contiguous(), chosen[..., :topk].contiguous()
    # Elsewhere than on a CPU, a look makes the host wait, which costs more than settling ties that are not there.
    if sums.device.type != "cpu" or bool(tied.any()):
        those: Any = tied.nonzero(as_tuple=True) if sums.device.type == "cpu" else ...
        slots = first_keys[those].index_select(-1, candidates[0]) * num_subkeys
        slots += second_keys[those].index_select(-1, candidates[1])
        ascending = slots.argsort(-1)
        ranked, order = sums[those].gather(-1, ascending).sort(dim=-1, descending=True, stable=True)
        best[those], chosen[those] = ranked[..., :topk], ascending.gather(-1, order[..., :topk])
    positions = candidates[:, chosen]
    slots = first_keys.gather(-1, positions[0]) * num_subkeys + second_keys.gather(-1, positions[1])
    probabilities = scores[:, :moving].softmax(-1) if moving else None
    return SlotChoice(best.transpose(0, 1), slots.transpose(0, 1), positions, probabilities)
