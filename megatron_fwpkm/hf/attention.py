"""Causal attention over a window, and rotary positions, on torch's scaled_dot_product_attention.

Memory grows with tokens times window (or with tokens times a block of queries for full attention), never with the
square of the text. Shapes: q [B, heads, T, head_dim]; k and v [B, key/value heads, S, head_dim], S = past + T.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

QUERY_BLOCK = 128
"""Queries that share one mask: larger blocks waste scores outside a short window, smaller ones waste calls."""
MASK_ELEMENTS = 1 << 22
"""Most elements of one mask per sequence: bounds the block where attention is full and the past is long."""


def rotary_angles(positions: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, rotary_dim] of integer positions [B, T], computed in float32.

    Frequencies and angles are rounded exactly as in Megatron: at position 4096 another order of the same operations
    turns a head by 2e-4, which the logits show.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device) / rotary_dim
    frequencies = 1.0 / theta**exponents
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    angles = torch.cat([angles, angles], -1).unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first dimensions of [B, heads, T, head_dim]; the two halves of them form the pairs (as Megatron)."""
    rotary_dim = cos.shape[-1]
    rotated, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    first, second = rotated.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    rotated = rotated * cos.to(x.dtype) + turned * sin.to(x.dtype)
    return torch.cat([rotated, rest], -1) if rest.shape[-1] else rotated


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, key_mask: Tensor | None = None,
                     dropout: float = 0.0) -> Tensor:  # fmt: skip
    """Attention of the last T of S tokens to those before them and themselves.

    Args:
        q: queries of the last T tokens.
        k: keys.
        v: values.
        window: tokens a query sees, itself included; None for all.
        key_mask: [B, S] bool, False where a token must not be seen (padding); or None.
        dropout: of the attention weights.

    Returns:
        [B, heads, T, head_dim].
    """
    num_queries, num_keys = q.shape[2], k.shape[2]
    past = num_keys - num_queries
    grouped = q.shape[1] != k.shape[1]
    if window is not None and num_keys <= window:
        window = None
    if key_mask is None and window is None and (num_queries == 1 or past == 0):
        return F.scaled_dot_product_attention(q, k, v, is_causal=num_queries > 1, dropout_p=dropout, enable_gqa=grouped)
    if window is None:
        block = max(1, MASK_ELEMENTS // num_keys)
    else:
        block = max(QUERY_BLOCK, min(window, MASK_ELEMENTS // window))
    outputs = []
    for start in range(0, num_queries, block):
        stop = min(start + block, num_queries)
        first = 0 if window is None else max(0, past + start - window + 1)
        last = past + stop
        mask = _band(past + start, last, first, window, q.device)
        if key_mask is not None:
            # Padding sees itself, or its softmax would have no terms.
            own = _band(past + start, last, first, 1, q.device)
            mask = (mask & key_mask[:, None, None, first:last]) | own
        outputs.append(
            F.scaled_dot_product_attention(
                q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last], attn_mask=mask, dropout_p=dropout,
                enable_gqa=grouped,
            )
        )  # fmt: skip
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def _band(start: int, stop: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the keys [first, stop) the queries [start, stop) see; bool [queries, keys]."""
    distance = torch.arange(start, stop, device=device).unsqueeze(1) - torch.arange(first, stop, device=device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
