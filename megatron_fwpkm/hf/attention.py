"""Causal attention over a window, and rotary positions, on torch's scaled_dot_product_attention.

Memory grows with tokens times window (or with tokens times a block of queries for full attention), never with the
square of the text. Shapes: q [B, heads, T, head_dim]; k and v [B, key/value heads, S, head_dim], S = past + T.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..ops.yarn import Yarn
from .configuration_fwpkm import FwPKMHFConfig
from .memory_block import RMSNorm
from .rope_fields import SCALED_FROM, SCALED_WHOLLY
from .rows import align_right

if TYPE_CHECKING:
    from .cache import FwPKMCache

QUERY_BLOCK = 32
"""Least queries of a block: larger ones waste scores outside a short window, smaller ones waste products."""
MASK_ELEMENTS = 1 << 22
"""Most elements of one mask per sequence: bounds what a call of torch's attention is given."""


def rotary_angles(
    positions: Tensor, rotary_dim: int, theta: float, scaling_factor: float | None = None, yarn: Yarn | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, rotary_dim] of integer positions [B, T], computed in float32.

    Frequencies and angles are rounded exactly as in Megatron: at position 4096 another order of the same operations
    turns a head by 2e-4, which the logits show.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device) / rotary_dim
    frequencies = 1.0 / theta**exponents
    if scaling_factor is not None:
        frequencies = scaled_frequencies(frequencies, scaling_factor)
    if yarn is not None:
        frequencies = yarn.frequencies(frequencies, theta)
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    angles = torch.cat([angles, angles], -1).unsqueeze(1)
    if yarn is None:
        return angles.cos(), angles.sin()
    return angles.cos() * yarn.amplitude, angles.sin() * yarn.amplitude


def scaled_frequencies(frequencies: Tensor, factor: float) -> Tensor:
    """Rotary frequencies with the low ones divided by `factor`, and a smooth passage to the high ones, which stay."""
    wavelengths = 2 * math.pi / frequencies
    kept = (SCALED_WHOLLY / wavelengths - 1) / (SCALED_WHOLLY / SCALED_FROM - 1)  # 1 at SCALED_FROM, 0 at SCALED_WHOLLY
    between = (1 - kept) * frequencies / factor + kept * frequencies
    scaled = torch.where(wavelengths > SCALED_WHOLLY, frequencies / factor, between)
    return torch.where(wavelengths < SCALED_FROM, frequencies, scaled)


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
        step = max(1, MASK_ELEMENTS // num_keys)
    else:
        block = min(num_queries, max(QUERY_BLOCK, min(window, MASK_ELEMENTS // window)))
        step = block * max(1, MASK_ELEMENTS // (block * (block + window)))
    outputs = []
    for start in range(0, num_queries, step):
        stop = min(start + step, num_queries)
        last = past + stop
        part = q[:, :, start:stop], k[:, :, :last], v[:, :, :last]
        seen = None if key_mask is None else key_mask[:, :last]
        if window is not None:
            outputs.append(_window_attention(*part, window, block, seen, dropout))
            continue
        mask = _band(past + start, last, 0, None, q.device)
        if seen is not None:
            # Padding sees itself, or its softmax would have no terms.
            mask = (mask & seen[:, None, None]) | _band(past + start, last, 0, 1, q.device)
        outputs.append(F.scaled_dot_product_attention(*part, attn_mask=mask, dropout_p=dropout, enable_gqa=grouped))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def _window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, block: int, key_mask: Tensor | None,
                      dropout: float) -> Tensor:  # fmt: skip
    """`causal_attention` in blocks of queries that are a batch: one call for all, and one mask without padding.

    A block sees its own keys and the `window - 1` before them. Heads that share keys stand in a block one after
    another, so that keys are not repeated for them.
    """
    batch, heads, num_queries, _ = q.shape
    past, span = k.shape[2] - num_queries, block + window - 1
    blocks = -(-num_queries // block)
    first, sharing = max(0, past - window + 1), heads // k.shape[1]
    before, after = max(0, window - 1 - past), blocks * block - num_queries  # what is added so that all are whole
    mask = _band(window - 1, span, 0, window, q.device)
    if key_mask is not None or before or after:
        known = mask.new_ones(batch, k.shape[2]) if key_mask is None else key_mask
        known = F.pad(known[:, first:], (before, after), value=False).unfold(1, span, block)
        # Padding sees itself, or its softmax would have no terms.
        mask = (mask & known.unsqueeze(2)) | _band(window - 1, span, 0, 1, q.device)
        mask = mask.flatten(0, 1).unsqueeze(1)
    k, v = (
        F.pad(x[:, :, first:], (0, 0, before, after)).unfold(2, span, block).permute(0, 2, 1, 4, 3).flatten(0, 1)
        for x in (k, v)
    )
    q = F.pad(q, (0, 0, 0, after)).unflatten(1, (-1, sharing)).unflatten(3, (blocks, block))
    q = q.permute(0, 3, 1, 2, 4, 5).flatten(3, 4).flatten(0, 1)
    mask = mask.repeat(*(1,) * (mask.dim() - 2), sharing, 1)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    seen = seen.unflatten(2, (sharing, block)).unflatten(0, (batch, blocks)).permute(0, 2, 3, 1, 4, 5)
    return seen.flatten(3, 4).flatten(1, 2)[:, :, :num_queries]


def _band(start: int, stop: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the keys [first, stop) the queries [start, stop) see; bool [queries, keys]."""
    distance = torch.arange(start, stop, device=device).unsqueeze(1) - torch.arange(first, stop, device=device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


class FullLayer(DynamicLayer):
    """Keys and values of the whole text."""

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, shift: Tensor | None = None, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, head_dim] and return all; `shift` as for `WindowLayer`."""
        keys, values = super().update(key_states, value_states)
        if shift is not None:
            self.keys, self.values = align_right(keys, shift), align_right(values, shift)
        return keys, values

    def tensors(self) -> dict[str, Tensor]:
        """What is kept, by name; empty before the first token."""
        return {"keys": self.keys, "values": self.values} if self.is_initialized else {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put what `tensors()` has given in the place of what is kept; raises ValueError where it does not fit."""
        keys, values = _text(tensors)
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


class WindowLayer(DynamicSlidingWindowLayer):
    """Keys and values of the last `sliding_window - 1` tokens: what the next token can still see besides itself."""

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, shift: Tensor | None = None, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, head_dim]; return the kept and the new ones, and keep the last window.

        The window is copied: a slice would keep the tensors of a long call alive. `shift` [B] is the number of
        entries at the end of every row that are no tokens: rows are kept aligned to the right.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        keys, values = torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)
        first = max(0, keys.shape[-2] - self.sliding_window + 1)
        kept = (keys, values) if shift is None else (align_right(keys, shift), align_right(values, shift))
        self.keys, self.values = (states[..., first:, :].clone() for states in kept)
        return keys, values

    def tensors(self) -> dict[str, Tensor]:
        """What is kept, by name; empty before the first token."""
        if not self.is_initialized:
            return {}
        return {"keys": self.keys, "values": self.values, "length": torch.tensor([self.cumulative_length])}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put what `tensors()` has given in the place of what is kept; raises ValueError where it does not fit."""
        keys, values = _text(tensors)
        length, kept = tensors.get("length"), keys.shape[2]
        if length is None or length.shape != (1,) or not kept <= min(int(length), self.sliding_window - 1):
            raise ValueError("the attention window is damaged: its length is missing or wrong")
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.cumulative_length = keys, values, int(length)


def _text(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values [B, heads, T, head_dim] that were saved; raises ValueError where they do not fit each other."""
    keys, values = tensors.get("keys"), tensors.get("values")
    if keys is None or values is None or keys.ndim != 4 or keys.shape != values.shape:
        raise ValueError("keys or values of attention are missing, or do not fit each other")
    return keys, values


class FwPKMAttention(nn.Module):
    """Grouped-query attention with rotary positions; optional are norms per head, a sliding window, an output gate."""

    def __init__(self, config: FwPKMHFConfig, layer_idx: int):
        super().__init__()
        self.layer_idx, self.head_dim, self.window = layer_idx, config.head_dim, config.attention_windows[layer_idx]
        self.dropout, self.output_gate = config.attention_dropout, config.attention_output_gate
        width, bias = config.hidden_size, config.linear_bias
        queries = config.num_attention_heads * (2 if self.output_gate else 1)
        self.q_proj = nn.Linear(width, queries * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, width, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], key_mask: Tensor | None,
                cache: FwPKMCache | None) -> Tensor:  # fmt: skip
        """Attend from [B, T, hidden_size]; `key_mask` [B, past + T] is False at keys of no token."""
        heads = (-1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(hidden).unflatten(-1, heads).transpose(1, 2) for project in projections)
        gate = None
        if self.output_gate:  # the heads of q are query and gate in turn
            q, gate = q[:, 0::2], q[:, 1::2]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        mask = None if key_mask is None else key_mask[:, -k.shape[2] :]
        dropout = self.dropout if self.training else 0.0
        seen = causal_attention(q, k, v, self.window, mask, dropout)
        if gate is not None:
            seen = (seen * torch.sigmoid(gate.float())).to(seen.dtype)
        return self.o_proj(seen.transpose(1, 2).flatten(2))
