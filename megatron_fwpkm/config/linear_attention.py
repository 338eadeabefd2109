"""Sizes of linear attention, which keeps a state of fixed size in the place of all keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .field_metadata import ARCHITECTURE, AtLeast, AtMost


@dataclass(frozen=True)
class LinearAttentionConfig:
    """Linear attention (gdn in --layer-pattern); the flags have Megatron-LM's names and begin with --linear-."""

    conv_kernel_dim: Annotated[int, AtLeast(2), AtMost(1024), ARCHITECTURE] = 4
    """Number of tokens, the token itself included, that the convolution on queries, keys and values sees."""
    key_head_dim: Annotated[int, AtLeast(1), AtMost(2**16), ARCHITECTURE] = 128
    """Width of one head's queries and keys."""
    value_head_dim: Annotated[int, AtLeast(1), AtMost(2**16), ARCHITECTURE] = 128
    """Width of one head's values and output."""
    num_key_heads: Annotated[int, AtLeast(1), AtMost(2**16), ARCHITECTURE] = 16
    """Number of query and key heads."""
    num_value_heads: Annotated[int, AtLeast(1), AtMost(2**16), ARCHITECTURE] = 32
    """Number of value heads, a multiple of --linear-num-key-heads; a head's state has --linear-key-head-dim times
    --linear-value-head-dim numbers."""
