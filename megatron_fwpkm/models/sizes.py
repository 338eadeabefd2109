"""Sizes that follow from the configuration."""

from __future__ import annotations

from megatron_fwpkm.config import ModelConfig


def ffn_hidden_size(model: ModelConfig) -> int:
    """Width of the MLP."""
    return model.ffn_hidden_size or -(-model.hidden_size * 8 // 3 // 64) * 64


def kv_channels(model: ModelConfig) -> int:
    """Width of an attention head."""
    return model.kv_channels or model.hidden_size // model.num_attention_heads


def num_query_groups(model: ModelConfig) -> int:
    """Number of key/value heads."""
    return model.num_query_groups or model.num_attention_heads


def layer_windows(model: ModelConfig) -> tuple[tuple[int, int] | None, ...]:
    """Window of every layer, None for full attention."""
    windows = model.window_size or ((-1, 0),)
    if len(windows) == 1:
        windows = windows * model.num_layers
    return tuple(None if left < 0 else (left, right) for left, right in windows)
