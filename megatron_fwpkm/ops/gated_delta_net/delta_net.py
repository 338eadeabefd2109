"""From projections of the hidden states to what the output projection takes: one function for every use of the layer.

Training, reading a long text and writing token by token are calls of `gated_delta_net` with another state. It ships
with exports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .chunked import gated_delta_rule
from .short_convolution import short_convolution

DeltaRule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""`chunked.gated_delta_rule`, or what computes the same: from queries, keys, values, log-decays, strengths, state and
starts to outputs and the state after them."""
L2_EPSILON = 1e-6
INITIAL_DECAY_RATES = (1.0, 16.0)
"""Between them exp(A_log) is drawn uniformly before training."""


class DeltaNetWeights(NamedTuple):
    """The weights between the projections, of all heads or of some."""

    convolution: Tensor
    """[key heads, channels of a key head (`head_channels`), taps]."""
    dt_bias: Tensor
    """[value heads]."""
    A_log: Tensor
    """[value heads]."""
    norm: Tensor
    """[value width]."""


class DeltaNetState(NamedTuple):
    """What a text leaves behind: the next tokens need nothing else of it."""

    history: Tensor
    """[B, taps - 1, key heads * channels of a key head]: inputs of the convolution."""
    recurrent: Tensor
    """[B, value heads, key width, value width]."""


def head_channels(key_width: int, value_width: int, repeats: int) -> tuple[int, int, int]:
    """Widths of the query, the key and the values of one key head, which serves `repeats` value heads."""
    return key_width, key_width, repeats * value_width


def gated_delta_net(
    qkvz: Tensor,
    ba: Tensor,
    weights: DeltaNetWeights,
    key_width: int,
    eps: float,
    state: DeltaNetState | None = None,
    starts: Tensor | None = None,
    counts: Tensor | None = None,
    rule: DeltaRule = gated_delta_rule,
) -> tuple[Tensor, DeltaNetState]:
    """Short convolution, gated delta rule, gated norm.

    Args:
        qkvz: [B, T, key heads, channels]: of every key head its query, its key, then of each of its value heads the
            value, then of each the output gate.
        ba: [B, T, key heads, 2 * value heads of a key head]: write strengths before the sigmoid, then decays before the
            softplus.
        weights: the other weights.
        key_width: of queries and keys.
        eps: of the norm.
        state: after the tokens before; None at the beginning of a text.
        starts: [B, T] bool, True at the first token of a document, which knows nothing of those before; or None.
        counts: [B], tokens of every row; what stands behind them is none and leaves no trace. None: all are tokens.
        rule: what computes the delta rule.

    Returns:
        [B, T, value heads * value width] in the dtype of `qkvz`, and the state after the last tokens.
    """
    key_heads, value_width, repeats = qkvz.shape[2], weights.norm.shape[0], ba.shape[-1] // 2
    channels, value_heads = head_channels(key_width, value_width, repeats), (key_heads * repeats, value_width)
    mixed, z = qkvz.split([sum(channels), repeats * value_width], -1)
    b, a = (part.flatten(2) for part in ba.chunk(2, -1))
    mixed, history = short_convolution(
        mixed.flatten(2), weights.convolution.flatten(0, 1), None if state is None else state.history, starts, counts
    )
    queries, keys, values = mixed.unflatten(-1, (key_heads, -1)).split(channels, -1)
    log_decays, strengths = decays_and_strengths(a, b, weights)
    if counts is not None:
        no_token = (torch.arange(qkvz.shape[1], device=counts.device) >= counts.unsqueeze(1)).unsqueeze(-1)
        log_decays, strengths = log_decays.masked_fill(no_token, 0), strengths.masked_fill(no_token, 0)
    outputs, recurrent = rule(
        normalized(queries), normalized(keys), values.flatten(2).unflatten(2, value_heads), log_decays, strengths,
        None if state is None else state.recurrent, starts,
    )  # fmt: skip
    gated = gated_norm(outputs, z.flatten(2).unflatten(2, value_heads), weights.norm, eps)
    return gated.flatten(2).to(qkvz.dtype), DeltaNetState(history, recurrent)


def decays_and_strengths(a: Tensor, b: Tensor, weights: DeltaNetWeights) -> tuple[Tensor, Tensor]:
    """-exp(A_log) * softplus(a + dt_bias) and sigmoid(b), of [B, T, value heads], in float32 at least."""
    a, b, rate, bias = map(_wide, (a, b, weights.A_log, weights.dt_bias))
    return -rate.exp() * F.softplus(a + bias), torch.sigmoid(b)


def normalized(x: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + 1e-6) over the last dimension, computed in float32 at least; in the dtype of `x`."""
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + L2_EPSILON)).to(x.dtype)


def gated_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight * silu(z) over the last dimension, in float32 at least."""
    x, z, weight = map(_wide, (x, z, weight))
    return F.rms_norm(x, x.shape[-1:], weight, eps) * F.silu(z)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
