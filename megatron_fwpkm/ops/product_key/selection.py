"""Product-key selection that is fast (one matrix product) and exact (distances by differences, ties settled).

Shapes: G = heads * 2 groups (one list of n sub-keys each), M tokens, k = topk, h = key_dim / 2.

A matrix product ranks all sub-keys, but its rounding depends on the shape of the batch, and near a key the expanded
square loses all digits (DESIGN 2.1). So it only proposes: the kept k are scored again by differences, and a token
whose k-th and next candidate are closer than rounding can tell is ranked by differences over all n sub-keys. The
result does not depend on how tokens are batched, and equal scores go to the lowest index.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .epsilons import IDW_EPSILON

_BLOCK_ELEMENTS = 1 << 24
"""Largest number of scores that exist at once; longer inputs are done in blocks of tokens."""


class KeptSubKeys(NamedTuple):
    """The topk best sub-keys of every token and group, best first.

    Attributes:
        indices: [G, M, k] int64.
        costs: [G, M, k], what is minimised: the squared distance, or minus the dot product.
    """

    indices: Tensor
    costs: Tensor


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


def gather_sub_keys(sub_keys: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` [G, M, k] of every group's list `sub_keys` [G, n, h], as [G, M, k, h]."""
    groups, num_subkeys, half_dim = sub_keys.shape
    offsets = torch.arange(groups, device=indices.device).view(-1, 1, 1) * num_subkeys
    rows = sub_keys.reshape(-1, half_dim).index_select(0, (indices + offsets).flatten())
    return rows.view(*indices.shape, half_dim)


def exact_costs(queries: Tensor, rows: Tensor, score: str) -> Tensor:
    """Cost of sub-keys `rows` [..., k, h] for `queries` [..., h], each on its own, without a matrix product."""
    if score == "dot_product":
        return -(rows * queries.unsqueeze(-2)).sum(-1)
    return (queries.unsqueeze(-2) - rows).square_().sum(-1)


def scores_of(costs: Tensor, score: str) -> Tensor:
    """Scores (larger is better) that belong to costs."""
    return -costs if score == "dot_product" else -torch.log(costs + IDW_EPSILON)


def _select_all(queries: Tensor, sub_keys: Tensor, topk: int, score: str) -> tuple[Tensor, Tensor]:
    """Rank all sub-keys [F, n, h] of F queries [F, h] by exact costs; equal costs: lowest index first."""
    costs = exact_costs(queries, sub_keys, score)
    costs, order = costs.sort(dim=-1, stable=True)
    return order[:, :topk], costs[:, :topk]


def _select_block(queries: Tensor, sub_keys: Tensor, topk: int, score: str) -> KeptSubKeys:
    groups, tokens, half_dim = queries.shape
    transposed = sub_keys.transpose(1, 2)
    key_squares = sub_keys.square().sum(-1).unsqueeze(1)
    query_squares = queries.square().sum(-1, keepdim=True)
    if score == "dot_product":
        proposals = torch.bmm(queries, transposed).neg_()
    else:
        # The square of the query is the same for all sub-keys and does not change their order.
        proposals = torch.baddbmm(key_squares, queries, transposed, alpha=-2)
    kept, indices = proposals.topk(topk, dim=-1, largest=False)
    # What both ways of computing a cost can be off by, with room to spare.
    norms = (query_squares * key_squares.amax(-1, keepdim=True)).sqrt_()
    doubt = norms * half_dim**0.5
    if score != "dot_product":
        doubt += (kept[..., -1:] + query_squares).abs_()
    doubt *= 4 * torch.finfo(queries.dtype).eps
    close = proposals <= kept[..., -1:] + doubt
    costs, order = exact_costs(queries, gather_sub_keys(sub_keys, indices), score).sort(-1)
    indices = indices.gather(-1, order)
    tied = costs[..., 1:] == costs[..., :-1]
    if int(torch.count_nonzero(close) + torch.count_nonzero(tied)) > groups * tokens * topk:
        doubtful = (close.sum(-1) > topk) | tied.any(-1)
        group, token = doubtful.nonzero(as_tuple=True)
        step = max(1, _BLOCK_ELEMENTS // (sub_keys.shape[1] * half_dim))
        for g, t in zip(group.split(step), token.split(step), strict=True):
            indices[g, t], costs[g, t] = _select_all(queries[g, t], sub_keys[g], topk, score)
    return KeptSubKeys(indices, costs)


def select_sub_keys(queries: Tensor, sub_keys: Tensor, topk: int, score: str) -> KeptSubKeys:
    """The `topk` best sub-keys of each list for every token; equal scores: lowest index first. No gradient.

    Args:
        queries: [G, M, h] halves of the queries.
        sub_keys: [G, n, h].
        topk: at most n.
        score: `idw` or `dot_product`.

    Returns:
        Indices and costs, best first.
    """
    with torch.no_grad():
        step = max(1, _BLOCK_ELEMENTS // (sub_keys.shape[0] * sub_keys.shape[1]))
        blocks = [_select_block(block, sub_keys, topk, score) for block in queries.split(step, dim=1)]
        if len(blocks) == 1:
            return blocks[0]
        return KeptSubKeys(torch.cat([b.indices for b in blocks], 1), torch.cat([b.costs for b in blocks], 1))


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
    # Elsewhere than on a CPU, a look makes the host wait, which costs more than settling ties that are not there.
    if sums.device.type != "cpu" or bool((best[..., 1:] == best[..., :-1]).any()):
        slots = first_keys.index_select(-1, candidates[0]) * num_subkeys
        slots += second_keys.index_select(-1, candidates[1])
        ascending = slots.argsort(-1)
        best, order = sums.gather(-1, ascending).sort(dim=-1, descending=True, stable=True)
        chosen = ascending.gather(-1, order)
    chosen, best = chosen[..., :topk].contiguous(), best[..., :topk].contiguous()
    positions = candidates[:, chosen]
    slots = first_keys.gather(-1, positions[0]) * num_subkeys + second_keys.gather(-1, positions[1])
    probabilities = scores[:, :moving].softmax(-1) if moving else None
    return SlotChoice(best.transpose(0, 1), slots.transpose(0, 1), positions, probabilities)
