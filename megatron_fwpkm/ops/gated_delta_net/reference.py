"""The gated delta net as its equations say, token by token, differentiable: the oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def delta_rule_by_token(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decays: Tensor,
    strengths: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S <- exp(g) S, then S <- S + k (b (v - S^T k))^T, then o = S^T q / sqrt(key width), for one token after another.

    Args:
        queries: [B, T, key heads, key width].
        keys: like `queries`.
        values: [B, T, value heads, value width]; each key head serves as many value heads that follow each other.
        log_decays: [B, T, value heads], g, at most 0.
        strengths: [B, T, value heads], b, from 0 to 1.
        state: [B, value heads, key width, value width] before the first token; None for zeros.
        starts: [B, T] bool, True at tokens before which the state becomes zero; None for no such token.

    Returns:
        [B, T, value heads, value width], and the state after the last token.
    """
    batch, length, heads, value_width = values.shape
    repeats = heads // keys.shape[2]
    queries, keys = queries.repeat_interleave(repeats, 2), keys.repeat_interleave(repeats, 2)
    scale = keys.shape[-1] ** -0.5
    if state is None:
        state = values.new_zeros(batch, heads, keys.shape[-1], value_width)
    outputs = []
    for t in range(length):
        if starts is not None:
            state = torch.where(starts[:, t, None, None, None], torch.zeros_like(state), state)
        state = state * log_decays[:, t].exp()[..., None, None]
        error = values[:, t] - torch.einsum("bhkv,bhk->bhv", state, keys[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", keys[:, t], strengths[:, t].unsqueeze(-1) * error)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, queries[:, t]) * scale)
    return (torch.stack(outputs, 1) if outputs else values), state


def convolution_by_token(
    x: Tensor, weight: Tensor, history: Tensor | None = None, starts: Tensor | None = None
) -> Tensor:
    """silu of the causal convolution: y[t] = silu(sum over j of weight[:, -1 - j] * x[t - j]), in x's document only.

    Args:
        x: [B, T, channels].
        weight: [channels, taps], the last tap for the token itself.
        history: [B, taps - 1, channels], the tokens before; None for zeros.
        starts: [B, T] bool, True at the first token of a document; None for one document.

    Returns:
        [B, T, channels].
    """
    batch, length, channels = x.shape
    taps = weight.shape[1]
    if history is None:
        history = x.new_zeros(batch, taps - 1, channels)
    outputs = []
    for row in range(batch):
        stream = torch.cat([history[row], x[row]])
        for t in range(length):
            total = x.new_zeros(channels)
            for tap in range(taps):
                crossed = starts is not None and bool(starts[row, max(0, t - tap + 1) : t + 1].any())
                if not crossed:
                    total = total + weight[:, -1 - tap] * stream[t + taps - 1 - tap]
            outputs.append(total * torch.sigmoid(total))
    return torch.stack(outputs).view(batch, length, channels)
