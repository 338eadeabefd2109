"""The static product key memory as its equations say, dense and differentiable: the oracle of `read`."""

from __future__ import annotations

from torch import Tensor

from ..product_key.reference import half_scores, top_stable


def reference_slots(queries: Tensor, sub_keys: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The best slots of every head among all of them, and their weights.

    Args:
        queries: [T, heads, key_dim].
        sub_keys: [heads, 2, n, key_dim / 2].
        topk: slots per head.

    Returns:
        slot indices and slot weights [T, heads, topk], best first; the weights of a head sum to 1.
    """
    first, second = half_scores(queries.unsqueeze(0), sub_keys, "dot_product").squeeze(0).unbind(-2)
    scores, slots = top_stable((first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2), topk)
    return slots, scores.softmax(-1)


def reference_sum(values: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of rows `slots` [T, heads, topk] of `values` [n * n, width], over all heads: [T, width]."""
    return (weights.unsqueeze(-1) * values[slots]).sum((1, 2))
