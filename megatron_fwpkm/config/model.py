"""Architecture of the language model around the memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Transformer architecture, in Megatron-LM's flag names."""

    num_layers: int = 12
    """Number of transformer layers."""
    hidden_size: int = 768
    """Width of the residual stream."""
    ffn_hidden_size: int | None = None
    """Width of the SwiGLU MLP; default 8/3 of the hidden size rounded up to a multiple of 64."""
    num_attention_heads: int = 12
    """Number of query heads of attention."""
    num_query_groups: int | None = None
    """Number of key/value heads (grouped-query attention); default one per query head."""
    kv_channels: int | None = None
    """Width of one attention head; default hidden size / attention heads."""
    seq_length: int = 4096
    """Tokens per training sequence."""
    max_position_embeddings: int | None = None
    """Longest text that an export accepts without a remark; default no limit: neither RoPE nor the memory has one."""
    window_size: tuple[tuple[int, int], ...] = ()
    """Sliding attention window as LEFT,0 (a token sees itself and LEFT tokens before it), once for all layers or once
    per layer, -1,0 being full causal attention; default full everywhere."""
    rotary_base: float = 10000.0
    """Base of the rotary position embedding."""
    rotary_percent: float = 1.0
    """Fraction of each attention head's width that is rotated."""
    use_rope_scaling: bool = False
    """Divide low rotary frequencies by --rope-scaling-factor, as Llama 3.1 does, for texts longer than 8,192 tokens."""
    rope_scaling_factor: float = 8.0
    """What --use-rope-scaling divides frequencies with wavelengths above 8,192 tokens by; those below 2,048 stay."""
    norm_epsilon: float = 1e-5
    """Epsilon of every RMSNorm."""
    qk_layernorm: bool = True
    """RMSNorm on queries and keys of every attention head."""
    add_bias_linear: bool = False
    """Biases in the attention and MLP linears (the memory block always has them)."""
    untie_embeddings_and_output_weights: bool = False
    """Give the output projection its own weight instead of the embedding's."""
    init_method_std: float = 0.02
    """Standard deviation of the normal initialisation of linears and embeddings."""
    embedding_init_method_std: float | None = None
    """Standard deviation of the initialisation of the token embedding; default --init-method-std."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    hidden_dropout: float = 0.0
    """Dropout on the residual branches."""
    make_vocab_size_divisible_by: int = 128
    """Pad the vocabulary to a multiple of this times the tensor-parallel size."""
