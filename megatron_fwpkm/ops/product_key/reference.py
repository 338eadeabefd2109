"""Product-key addressing as its equations say, dense and differentiable to any order (DESIGN sections 2.1 and 2.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .epsilons import ENTROPY_EPSILON, IDW_EPSILON


class HalfScores(NamedTuple):
    """The kept scores of both halves and the sub-keys they belong to, each [B, T, heads, 2, topk]."""

    scores: Tensor
    indices: Tensor
    num_subkeys: int


def half_scores(queries: Tensor, sub_keys: Tensor, score: str) -> Tensor:
    """Score every sub-key of both halves.

    Args:
        queries: [B, T, heads, key_dim].
        sub_keys: [heads, 2, num_subkeys, key_dim / 2].
        score: `idw` (-log(1e-3 + squared distance)) or `dot_product`.

    Returns:
        [B, T, heads, 2, num_subkeys].
    """
    halves = queries.unflatten(-1, (2, -1))
    products = torch.einsum("bthpd,hpnd->bthpn", halves, sub_keys)
    if score == "dot_product":
        return products
    squares = halves.square().sum(-1, keepdim=True) + sub_keys.square().sum(-1)
    return -torch.log(IDW_EPSILON + (squares - 2 * products).clamp(min=0))


def top_stable(scores: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The `topk` largest entries of the last dimension and their positions; equal entries: lowest position first."""
    order = scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :topk]
    return scores.gather(-1, order), order


def read_slots(queries: Tensor, sub_keys: Tensor, topk: int, score: str) -> tuple[Tensor, Tensor, HalfScores]:
    """Choose and weigh the slots of every token.

    Args:
        queries: [B, T, heads, key_dim].
        sub_keys: [heads, 2, num_subkeys, key_dim / 2].
        topk: slots per head.
        score: `idw` or `dot_product`.

    Returns:
        slot indices and slot weights [B, T, heads, topk] (a softmax over all heads * topk of a token), and the kept
        scores of both halves.
    """
    num_subkeys = sub_keys.shape[2]
    kept, indices = top_stable(half_scores(queries, sub_keys, score), topk)
    # In ascending order of the sub-keys the pairs are in ascending order of the slots, so a stable sort breaks ties
    # in favour of the lowest slot.
    ascending = indices.argsort(-1)
    ordered, ordered_indices = kept.gather(-1, ascending), indices.gather(-1, ascending)
    pair_scores = (ordered[..., 0, :, None] + ordered[..., 1, None, :]).flatten(-2)
    pair_slots = (ordered_indices[..., 0, :, None] * num_subkeys + ordered_indices[..., 1, None, :]).flatten(-2)
    slot_scores, chosen = top_stable(pair_scores, topk)
    slot_weights = slot_scores.flatten(-2).softmax(-1).view_as(slot_scores)
    return pair_slots.gather(-1, chosen), slot_weights, HalfScores(kept, indices, num_subkeys)


def addressing_loss(halves: HalfScores, num_tokens: int) -> Tensor:
    """Negative entropy of the mean address, summed over both halves: minimising it spreads the reads (DESIGN 2.3).

    Args:
        halves: the kept scores of a piece.
        num_tokens: leading tokens that take part.

    Returns:
        A scalar, differentiable.
    """
    probabilities = halves.scores[:, :num_tokens].softmax(-1)
    batch, _, heads, _, _ = probabilities.shape
    dense = probabilities.new_zeros(*probabilities.shape[:-1], halves.num_subkeys)
    dense = dense.scatter(-1, halves.indices[:, :num_tokens], probabilities)
    mean = dense.sum((0, 1, 2)) / (batch * num_tokens * heads)
    return (mean * torch.log(mean + ENTROPY_EPSILON)).sum()
