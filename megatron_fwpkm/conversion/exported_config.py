"""The Transformers configuration of a checkpoint's model."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from ..config import FwMLPConfig, FwPKMConfig, ModelConfig, PretrainConfig
from ..config.derived import ffn_hidden_size, kv_channels, num_query_groups
from ..config.layer_kinds import layer_plan
from ..config.layer_pattern import layer_windows
from ..config.memories import memory_kinds
from ..hf import FwPKMHFConfig
from ..hf.drawn_tables import tables_hash
from ..hf.mlp_fields import PKM_LEAST
from .convert_options import StartingMemory
from .special_tokens import SpecialIds, begins_with_bos, sentencepiece_ids, tiktoken_ids
from .tokenizer_export import convert_tokenizer

if TYPE_CHECKING:
    from ..checkpoint.checkpoint_reader import CheckpointContents

MEMORY_FIELDS = sorted(
    {field.name for field in fields(FwPKMConfig)}
    & {field.name.removeprefix("fwpkm_") for field in fields(FwPKMHFConfig) if field.name.startswith("fwpkm_")}
    - {"implementation"}
)
"""What both configurations say of a memory; what computes it is each side's own choice."""
FAST_MLP_FIELDS = sorted(
    {field.name for field in fields(FwMLPConfig)}
    & {field.name.removeprefix("fwmlp_") for field in fields(FwPKMHFConfig) if field.name.startswith("fwmlp_")}
)
"""The same of a fast-weight MLP."""
PKM_FIELDS = [name.removeprefix("pkm_") for name in PKM_LEAST]
"""What both configurations say of a static memory."""


def default_memory(config: PretrainConfig) -> StartingMemory:
    """The memory a stream starts from under the run's resets."""
    return "trained" if all(memory.options.reset == "never" for memory in memory_kinds(config)) else "initial"


def without_tables(config: FwPKMHFConfig, trained: PretrainConfig) -> FwPKMHFConfig:
    """The same configuration for files without fast weights: it says how to draw the initial ones."""
    if not config.memory_layers:
        return config
    seed, table_dtype = trained.training.seed, trained.fwpkm.table_dtype
    rule = {"seed": seed, "table_dtype": table_dtype, "sha256": tables_hash(config, seed, table_dtype)}
    return FwPKMHFConfig.from_dict(config.to_dict() | {"fwpkm_drawn_tables": rule})


def hf_config(contents: CheckpointContents, memory: StartingMemory) -> FwPKMHFConfig:
    """The Transformers configuration of a checkpoint's model."""
    model, fwpkm = contents.config.model, contents.config.fwpkm
    special = _special_ids(contents)
    return FwPKMHFConfig(
        vocab_size=contents.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=ffn_hidden_size(model),
        num_hidden_layers=model.num_layers,
        token_mixers=[parts.mixer for parts in layer_plan(contents.config)],
        mlps=[parts.mlp for parts in layer_plan(contents.config)],
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=num_query_groups(model),
        head_dim=kv_channels(model),
        # Megatron counts the tokens to the left, Transformers the token itself too.
        attention_windows=[None if window is None else window + 1 for window in layer_windows(model)],
        qk_norm=model.qk_layernorm,
        attention_output_gate=model.attention_output_gate,
        linear_bias=model.add_bias_linear,
        **{f"linear_{name}": value for name, value in asdict(contents.config.linear_attention).items()},
        attention_dropout=model.attention_dropout,
        hidden_dropout=model.hidden_dropout,
        rope_theta=float(int(model.rotary_base)),
        partial_rotary_factor=model.rotary_percent,
        rope_scaling_factor=model.rope_scaling_factor if model.use_rope_scaling else None,
        **_yarn_fields(model),
        max_position_embeddings=model.max_position_embeddings,
        training_length=model.seq_length,
        rms_norm_eps=model.norm_epsilon,
        initializer_range=model.init_method_std,
        tie_word_embeddings=not model.untie_embeddings_and_output_weights,
        pad_token_id=special.pad,
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        **{f"pkm_{name}": getattr(contents.config.pkm, name) for name in PKM_FIELDS},
        fwpkm_layers=[number - 1 for number in fwpkm.layer_numbers],
        **{f"fwpkm_{name}": getattr(fwpkm, name) for name in MEMORY_FIELDS},
        fwmlp_layers=[number - 1 for number in contents.config.fwmlp.layer_numbers],
        **{f"fwmlp_{name}": getattr(contents.config.fwmlp, name) for name in FAST_MLP_FIELDS},
        fwpkm_memory=memory,
        fwpkm_replica=contents.replica if memory == "trained" else None,
        fwpkm_iteration=contents.iteration,
        architectures=["FwPKMForCausalLM"],
    )


def _yarn_fields(model: ModelConfig) -> dict[str, float | None]:
    original = model.yarn_original_max_position_embeddings or model.seq_length
    stretched, factor = model.rope_type == "yarn", model.rotary_scaling_factor
    return {
        "yarn_factor": factor if stretched else None,
        "yarn_original_length": original if stretched else None,
        "yarn_beta_fast": model.yarn_beta_fast,
        "yarn_beta_slow": model.yarn_beta_slow,
    }


def _special_ids(contents: CheckpointContents) -> SpecialIds:
    """Special tokens, without a conversion where there is a shorter way: it takes seconds, or may be refused."""
    data, path, bos_occurs = contents.config.data, contents.tokenizer_path, begins_with_bos(contents)
    if data.tokenizer_type == "NullTokenizer":
        return SpecialIds(eos=contents.vocab_size - 1, pad=contents.vocab_size - 1)
    if data.tokenizer_type == "TikTokenizer":
        return tiktoken_ids(data, bos_occurs)
    if path is not None and data.tokenizer_type == "SentencePieceTokenizer":
        return sentencepiece_ids(path, bos_occurs)
    tokenizer = convert_tokenizer(path, data, add_bos=bos_occurs)
    if tokenizer is None:
        return SpecialIds()
    return SpecialIds(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
