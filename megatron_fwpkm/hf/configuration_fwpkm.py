"""Configuration of the FwPKM language model in Transformers."""

from __future__ import annotations

from typing import Any

from .transformers_range import check_transformers  # noqa: F401  (first: it refuses releases without what follows)

# isort: split
from transformers import PreTrainedConfig

from .attention_fields import attention_mixers
from .config_checks import check_config, check_given
from .mlp_fields import DENSE
from .rope_fields import ROPE_FIELDS, SPELLINGS, agreed, new_spelling, old_spelling, take


class FwPKMHFConfig(PreTrainedConfig):
    """A causal transformer with a fast-weight product key memory before the attention of chosen layers.

    Args:
        vocab_size: tokens of the vocabulary.
        hidden_size: width of the residual stream.
        intermediate_size: width of the SwiGLU MLP.
        num_hidden_layers: number of layers.
        token_mixers: per layer the kind of its token mixer, as "fa" (full attention), "swa" (sliding attention) and
            "gdn" (gated delta net); default "swa" where attention_windows has a window, else "fa".
        mlps: per layer the kind of its MLP, "swiglu" or "pkm" (a static product key memory); default "swiglu" in all.
        num_attention_heads: query heads of attention.
        num_key_value_heads: key/value heads; None for one per query head.
        head_dim: width of an attention head; None for hidden_size / num_attention_heads.
        attention_windows: per layer the tokens that sliding attention sees, the token itself included; None in layers
            with another token mixer, which is the default for all.
        qk_norm: RMSNorm on queries and keys of every head.
        attention_output_gate: what every head of attention gives is multiplied by the sigmoid of a gate, which q_proj
            makes behind the query of the head.
        linear_bias: biases in the linears of attention and MLP (the memory block always has them).
        linear_conv_kernel_dim: tokens, itself included, that the convolution of a gated delta net sees.
        linear_key_head_dim: width of its queries and keys.
        linear_value_head_dim: width of its values.
        linear_num_key_heads: its query and key heads.
        linear_num_value_heads: its value heads, a multiple of these.
        attention_dropout: dropout of attention weights in training.
        hidden_dropout: dropout of the residual branches in training.
        rope_theta: base of the rotary embedding.
        partial_rotary_factor: fraction of a head's width that is rotated.
        rope_scaling_factor: divides low rotary frequencies, as in Llama 3.1; None for no scaling.
        yarn_factor: stretches rotary positions by YaRN, for texts so many times longer than yarn_original_length; None
            for no scaling. May be given to `from_pretrained` for a model that was trained without.
        yarn_original_length: tokens of the texts that the model was trained on; None for training_length.
        yarn_beta_fast: turns over these tokens from which a rotary frequency is unchanged.
        yarn_beta_slow: turns over these tokens up to which a rotary frequency is divided by yarn_factor.
        max_position_embeddings: longest text that generation accepts without a warning; None for no limit.
        training_length: tokens of a training sequence, for information.
        rms_norm_eps: epsilon of every RMSNorm.
        initializer_range: standard deviation of the initial linears and embeddings.
        tie_word_embeddings: share the weights of the embedding and the output projection.
        use_cache: default of the argument `use_cache` of a call in evaluation mode.
        pkm_num_heads: query heads of a static memory.
        pkm_num_subkeys: sub-keys per half; the table has their square of slots.
        pkm_key_dim: width of a query, both halves together.
        pkm_value_dim: width of a table row.
        pkm_topk: slots per head and token.
        fwpkm_layers: layers, counted from 0, that have a memory before their attention.
        fwpkm_num_heads: query heads of a memory.
        fwpkm_num_subkeys: sub-keys per half; the table has their square of slots.
        fwpkm_key_dim: width of a query, both halves together.
        fwpkm_value_dim: width of a table row.
        fwpkm_topk: slots per head and token.
        fwpkm_chunk_size: tokens between two writes.
        fwpkm_lookahead: a token's slots learn the value of the token this far ahead.
        fwpkm_inner_lr: step size of a write; 0 freezes the memory.
        fwpkm_addressing_weight: weight of the loss that spreads the sub-keys; 0 freezes them.
        fwpkm_score: "idw" (inverse distance) or "dot_product".
        fwpkm_gate: a learned gate per token mixes the read with the token's own value, and weighs its write.
        fwpkm_gate_writes: whether the gate weighs the write.
        fwpkm_normalize_targets: z-score the values.
        fwpkm_boundary: arithmetic of a call without a cache: "drop" as the paper trains (the last lookahead tokens of a
            chunk are never written), or "carry". A call with a cache always carries.
        fwpkm_write_scale: arithmetic of whatever carries: "consistent", with which the result does not depend on how a
            text is cut into calls, or "official", the streaming of the paper's authors, with which it does.
        fwpkm_implementation: what computes the memories: "plain", "reference", "sparse" or "triton", of which the last
            three need the package megatron_fwpkm. "auto" takes "plain" on the CPU, and on a GPU the package's own
            choice where it is installed.
        fwmlp_layers: layers, counted from 0, that have a fast-weight MLP in the place of a memory.
        fwmlp_hidden_size: hidden width of its SwiGLU.
        fwmlp_key_dim: width of a query.
        fwmlp_value_dim: width of a value.
        fwmlp_chunk_size: tokens between two writes.
        fwmlp_lookahead: a token learns the mean of its value and of so many after it.
        fwmlp_inner_lr: step size of a write; 0 freezes the weights.
        fwmlp_gate: as fwpkm_gate.
        fwmlp_gate_writes: whether the gate weighs the loss of a token.
        fwmlp_normalize_targets: z-score the values.
        fwmlp_boundary: as fwpkm_boundary.
        fwmlp_write_scale: as fwpkm_write_scale.
        fwpkm_memory: which memory every text starts from, for information: "initial" or "trained".
        fwpkm_replica: data-parallel replica of the training run whose trained memory it is, for information.
        fwpkm_drawn_tables: for files without fast weights, what `from_pretrained` draws the initial ones from: `seed`
            of the training run and `table_dtype` ("fp32" or "bf16"), and the `sha256` that they must have; None where
            the files have them.
        fwpkm_iteration: iteration of the training run that the weights are from, for information.
        memory: whose the memories are that a call with several sequences makes: "per-sequence", so that every sequence
            has its own, or "shared" by all of them, as in the paper. The argument `memory` of a call takes precedence.

    Raises:
        ValueError: a field is out of its range, or fields do not fit each other; with name, value and what is allowed.
    """

    model_type = "fwpkm"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    # Where the default is None, __post_init__ puts a value.
    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    token_mixers: list[str] = None  # type: ignore[assignment]
    mlps: list[str] = None  # type: ignore[assignment]
    num_attention_heads: int = 12
    num_key_value_heads: int = None  # type: ignore[assignment]
    head_dim: int = None  # type: ignore[assignment]
    attention_windows: list[int | None] = None  # type: ignore[assignment]
    qk_norm: bool = True
    attention_output_gate: bool = False
    linear_bias: bool = False
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    rope_scaling_factor: float | None = None
    yarn_factor: float | None = None
    yarn_original_length: int | None = None
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    max_position_embeddings: int | None = None
    training_length: int | None = None
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pkm_num_heads: int = 4
    pkm_num_subkeys: int = 512
    pkm_key_dim: int = 512
    pkm_value_dim: int = 512
    pkm_topk: int = 32
    fwpkm_layers: list[int] = None  # type: ignore[assignment]
    fwpkm_num_heads: int = 1
    fwpkm_num_subkeys: int = 512
    fwpkm_key_dim: int = 512
    fwpkm_value_dim: int = 512
    fwpkm_topk: int = 8
    fwpkm_chunk_size: int = 512
    fwpkm_lookahead: int = 1
    fwpkm_inner_lr: float = 1.0
    fwpkm_addressing_weight: float = 1.0
    fwpkm_score: str = "idw"
    fwpkm_gate: bool = True
    fwpkm_gate_writes: bool = True
    fwpkm_normalize_targets: bool = True
    fwpkm_boundary: str = "drop"
    fwpkm_write_scale: str = "consistent"
    fwpkm_implementation: str = "auto"
    fwmlp_layers: list[int] = None  # type: ignore[assignment]
    fwmlp_hidden_size: int = 2304
    fwmlp_key_dim: int = 512
    fwmlp_value_dim: int = 512
    fwmlp_chunk_size: int = 512
    fwmlp_lookahead: int = 1
    fwmlp_inner_lr: float = 0.1
    fwmlp_gate: bool = True
    fwmlp_gate_writes: bool = False
    fwmlp_normalize_targets: bool = True
    fwmlp_boundary: str = "drop"
    fwmlp_write_scale: str = "consistent"
    fwpkm_memory: str = "initial"
    fwpkm_replica: int | None = None
    fwpkm_drawn_tables: dict[str, Any] | None = None
    fwpkm_iteration: int | None = None
    memory: str = "per-sequence"

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other fields, and check.

        Raises:
            ValueError: a field is out of its range, or fields do not fit each other.
        """
        given = {name: value for name in SPELLINGS if (value := kwargs.pop(name, None)) is not None}
        if given:
            own = {name: getattr(self, name) for name in ROPE_FIELDS}  # given if it is not the default
            given |= {name: value for name, value in own.items() if value != getattr(type(self), name)}
            for name, value in agreed(given).items():
                setattr(self, name, value)
        self.memory = self.memory or "per-sequence"  # None is what exports had before there was a choice
        check_given(self, kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        self.attention_windows = list(self.attention_windows or [None] * self.num_hidden_layers)
        self.token_mixers = list(self.token_mixers or attention_mixers(self.attention_windows))
        self.mlps = list(self.mlps or [DENSE] * self.num_hidden_layers)
        self.fwpkm_layers, self.fwmlp_layers = list(self.fwpkm_layers or []), list(self.fwmlp_layers or [])
        super().__post_init__(**kwargs)
        check_config(self)

    @property
    def memory_layers(self) -> list[int]:
        """Layers, counted from 0, with fast weights of any kind."""
        return sorted([*self.fwpkm_layers, *self.fwmlp_layers])

    @property
    def cuts_matter(self) -> bool:
        """What a call with a cache gives depends on the calls before it that brought the text."""
        scales = (self.fwpkm_layers, self.fwpkm_write_scale), (self.fwmlp_layers, self.fwmlp_write_scale)
        return any(layers and scale == "official" for layers, scale in scales)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary positions as Transformers 5 spells them."""
        return new_spelling(self)

    @rope_parameters.setter
    def rope_parameters(self, given: object) -> None:
        """Set the fields that it is made from."""
        take(self, "rope_parameters", given)

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """Their scaling as earlier releases spell it."""
        return old_spelling(self)

    @rope_scaling.setter
    def rope_scaling(self, given: object) -> None:
        """Set the fields that it is made from."""
        take(self, "rope_scaling", given)

    def convert_rope_params_to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What is left of keywords when the rotary positions are taken out: they have been before."""
        return kwargs

    def _checked_elsewhere(self, *args: Any, **kwargs: Any) -> None:
        """Transformers' own check needs `max_position_embeddings`; `check_config` checks rotary positions."""

    _validate_default_rope_parameters = _validate_llama3_rope_parameters = _checked_elsewhere
    _validate_yarn_rope_parameters = _checked_elsewhere

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the rotary positions in both spellings of Transformers, for tools that look for them."""
        return {**super().to_dict(), **{name: getattr(self, name) for name in SPELLINGS}}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration from a dictionary, and from keywords that go before its entries.

        Raises:
            ValueError: a field is out of its range, or fields do not fit each other.
        """
        try:
            made = super().from_dict(agreed(config_dict), **kwargs)
        except Exception as error:  # of a field that every configuration has; some releases check these on their own
            if not isinstance(error, AttributeError | TypeError) and "StrictDataclass" not in type(error).__name__:
                raise
            reason = " ".join(str(error).split())
            raise ValueError(f"a field of the configuration has the wrong type: {reason}") from error
        check_config(made[0] if isinstance(made, tuple) else made)
        return made
