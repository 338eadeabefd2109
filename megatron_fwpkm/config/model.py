"""Architecture of the language model around the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .field_metadata import (
    ARCHITECTURE,
    MAY_CHANGE,
    NOT_COMPARED,
    SAME_RUN,
    TAKEN_UNLESS_GIVEN,
    TAKEN_WITH_SHAPE,
    TRAINING_ONLY,
    Above,
    AtLeast,
    AtMost,
    BelowOne,
    Between,
)


@dataclass(frozen=True)
class ModelConfig:
    """Transformer architecture, in Megatron-LM's flag names."""

    num_layers: Annotated[int, AtLeast(1), AtMost(10_000), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = 12
    """Number of transformer layers."""
    hidden_size: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = 768
    """Width of the residual stream."""
    ffn_hidden_size: Annotated[int | None, AtLeast(1), AtMost(2**24), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = None
    """Width of the SwiGLU MLP; default 8/3 of the hidden size rounded up to a multiple of 64."""
    num_attention_heads: Annotated[int, AtLeast(1), AtMost(2**16), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = 12
    """Number of query heads of attention."""
    num_query_groups: Annotated[int | None, AtLeast(1), AtMost(2**16), ARCHITECTURE] = None
    """Number of key/value heads (grouped-query attention); default one per query head."""
    kv_channels: Annotated[int | None, AtLeast(1), AtMost(2**20), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = None
    """Width of one attention head; default hidden size / attention heads."""
    seq_length: Annotated[int, AtLeast(1), AtMost(2**24), SAME_RUN, TAKEN_UNLESS_GIVEN] = 4096
    """Tokens per training sequence."""
    max_position_embeddings: Annotated[int | None, AtLeast(1), NOT_COMPARED, TAKEN_UNLESS_GIVEN] = None
    """Longest text that an export accepts without a remark; default no limit: neither RoPE nor the memory has one."""
    window_size: Annotated[tuple[tuple[int, int], ...], ARCHITECTURE] = ()
    """Sliding attention window as LEFT,0 (a token sees itself and LEFT tokens before it), once for all layers or once
    per layer, -1,0 being full causal attention; default full everywhere."""
    rotary_base: Annotated[float, Above(1), AtMost(10**15), ARCHITECTURE] = 10000.0
    """Base of the rotary position embedding."""
    rotary_percent: Annotated[float, Above(0), Between(0, 1), ARCHITECTURE] = 1.0
    """Fraction of each attention head's width that is rotated."""
    use_rope_scaling: Annotated[bool, ARCHITECTURE] = False
    """Divide low rotary frequencies by --rope-scaling-factor, as Llama 3.1 does, for texts longer than 8,192 tokens."""
    rope_scaling_factor: Annotated[float, AtLeast(1), Between(0, 1_000_000), ARCHITECTURE] = 8.0
    """What --use-rope-scaling divides frequencies with wavelengths above 8,192 tokens by; those below 2,048 stay."""
    norm_epsilon: Annotated[float, Above(0), AtMost(1), ARCHITECTURE] = 1e-5
    """Epsilon of every RMSNorm."""
    qk_layernorm: Annotated[bool, ARCHITECTURE] = True
    """RMSNorm on queries and keys of every attention head."""
    add_bias_linear: Annotated[bool, ARCHITECTURE] = False
    """Biases in the attention and MLP linears (the memory block always has them)."""
    untie_embeddings_and_output_weights: Annotated[bool, ARCHITECTURE] = False
    """Give the output projection its own weight instead of the embedding's."""
    init_method_std: Annotated[float, Above(0), AtMost(10), SAME_RUN] = 0.02
    """Standard deviation of the normal initialisation of linears and embeddings."""
    embedding_init_method_std: Annotated[float | None, Above(0), AtMost(10), SAME_RUN, TRAINING_ONLY] = None
    """Standard deviation of the initialisation of the token embedding; default --init-method-std."""
    attention_dropout: Annotated[float, BelowOne(), MAY_CHANGE, TAKEN_WITH_SHAPE] = 0.0
    """Dropout on attention weights."""
    hidden_dropout: Annotated[float, BelowOne(), MAY_CHANGE, TAKEN_WITH_SHAPE] = 0.0
    """Dropout on the residual branches."""
    make_vocab_size_divisible_by: Annotated[int, AtLeast(1), AtMost(2**20), MAY_CHANGE, TRAINING_ONLY] = 128
    """Pad the vocabulary to a multiple of this times the tensor-parallel size."""
