"""Architecture of the language model around the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

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
    """Architecture of the transformer; the flags have Megatron-LM's names."""

    num_layers: Annotated[int, AtLeast(1), AtMost(10_000), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = 12
    """Number of transformer layers."""
    hidden_size: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = 768
    """Width of the residual stream."""
    ffn_hidden_size: Annotated[int | None, AtLeast(1), AtMost(2**24), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = None
    """Width of the SwiGLU MLP (default: 8/3 of --hidden-size, rounded up to a multiple of 64)."""
    layer_pattern: Annotated[str, ARCHITECTURE] = "fa"
    """Token mixers of the layers in order, repeated to --num-layers: full attention (fa), sliding attention (swa,
    which sees --window-size) or the gated delta net (gdn, whose sizes are --linear-*); NAME*N stands for N layers,
    swa:LEFT for a window of its own, as in swa*3,fa."""
    num_attention_heads: Annotated[int, AtLeast(1), AtMost(2**16), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = 12
    """Number of attention heads (query heads)."""
    num_query_groups: Annotated[int | None, AtLeast(1), AtMost(2**16), ARCHITECTURE] = None
    """Number of key/value heads for grouped-query attention (default: --num-attention-heads)."""
    kv_channels: Annotated[int | None, AtLeast(1), AtMost(2**20), ARCHITECTURE, TAKEN_UNLESS_GIVEN] = None
    """Width of one attention head (default: --hidden-size divided by --num-attention-heads)."""
    seq_length: Annotated[int, AtLeast(1), AtMost(2**24), SAME_RUN, TAKEN_UNLESS_GIVEN] = 4096
    """Number of tokens in a training sequence."""
    max_position_embeddings: Annotated[int | None, AtLeast(1), NOT_COMPARED, TAKEN_UNLESS_GIVEN] = None
    """Longest input, in tokens, that an exported model accepts without a warning (default: no limit, because neither
    RoPE nor the memory has one)."""
    window_size: Annotated[tuple[int, int] | None, ARCHITECTURE] = None
    """Window of sliding attention (swa in --layer-pattern) as LEFT,0: a token attends to itself and the LEFT tokens
    before it."""
    rotary_base: Annotated[float, Above(1), AtMost(10**15), ARCHITECTURE] = 10000.0
    """Base of the rotary position embedding (RoPE)."""
    rotary_percent: Annotated[float, Above(0), Between(0, 1), ARCHITECTURE] = 1.0
    """Fraction of each attention head's width to which RoPE is applied."""
    use_rope_scaling: Annotated[bool, ARCHITECTURE] = False
    """Scale RoPE as Llama 3.1 does, for inputs longer than 8,192 tokens: low frequencies are divided by
    --rope-scaling-factor."""
    rope_scaling_factor: Annotated[float, AtLeast(1), Between(0, 1_000_000), ARCHITECTURE] = 8.0
    """With --use-rope-scaling: frequencies with a wavelength above 8,192 tokens are divided by this; those with a
    wavelength below 2,048 tokens are unchanged."""
    rope_type: Annotated[Literal["rope", "yarn"], SAME_RUN] = "rope"
    """Rotary positions as they are (rope), or stretched for longer texts by --rotary-scaling-factor (yarn)."""
    rotary_scaling_factor: Annotated[float, AtLeast(1), AtMost(1_000_000), SAME_RUN] = 1.0
    """With --rope-type yarn: how many times longer than --yarn-original-max-position-embeddings texts may be."""
    yarn_original_max_position_embeddings: Annotated[int | None, AtLeast(1), AtMost(2**40), SAME_RUN] = None
    """With --rope-type yarn: length in tokens of the sequences that the model was trained on before (default:
    --seq-length)."""
    yarn_beta_fast: Annotated[float, Above(0), AtMost(1_000_000), SAME_RUN] = 32.0
    """With --rope-type yarn: turns over the original length from which a frequency is unchanged."""
    yarn_beta_slow: Annotated[float, Above(0), AtMost(1_000_000), SAME_RUN] = 1.0
    """With --rope-type yarn: turns over the original length up to which a frequency is divided by the factor."""
    norm_epsilon: Annotated[float, Above(0), AtMost(1), ARCHITECTURE] = 1e-5
    """Epsilon of every RMSNorm."""
    qk_layernorm: Annotated[bool, ARCHITECTURE] = True
    """Apply RMSNorm to the queries and keys of every attention head."""
    attention_output_gate: Annotated[bool, ARCHITECTURE] = False
    """Multiply what every attention head gives by a gate: the sigmoid of another projection as wide as the queries."""
    add_bias_linear: Annotated[bool, ARCHITECTURE] = False
    """Add biases to the linear layers of attention and MLP (the memory block always has them)."""
    untie_embeddings_and_output_weights: Annotated[bool, ARCHITECTURE] = False
    """Give the output layer its own weight instead of sharing the token embedding's."""
    init_method_std: Annotated[float, Above(0), AtMost(10), SAME_RUN] = 0.02
    """Standard deviation of the normal initialisation of linear layers and embeddings."""
    embedding_init_method_std: Annotated[float | None, Above(0), AtMost(10), SAME_RUN, TRAINING_ONLY] = None
    """Standard deviation of the initialisation of the token embedding (default: --init-method-std)."""
    attention_dropout: Annotated[float, BelowOne(), MAY_CHANGE, TAKEN_WITH_SHAPE] = 0.0
    """Dropout probability of the attention weights."""
    hidden_dropout: Annotated[float, BelowOne(), MAY_CHANGE, TAKEN_WITH_SHAPE] = 0.0
    """Dropout probability of the residual branches."""
    make_vocab_size_divisible_by: Annotated[int, AtLeast(1), AtMost(2**20), MAY_CHANGE, TRAINING_ONLY] = 128
    """Pad the vocabulary to a multiple of this number times the tensor-parallel size."""
