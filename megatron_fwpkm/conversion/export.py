"""From a Megatron checkpoint to a Hugging Face model, in memory or as a folder that needs nothing of this package.

megatron.core is imported only where a checkpoint is read: an export is used on machines without it.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import FwMLPConfig, FwPKMConfig, ModelConfig, PretrainConfig
from ..config.derived import ffn_hidden_size, kv_channels, num_query_groups
from ..config.layer_kinds import kinds_in_use, layer_plan
from ..config.layer_pattern import layer_windows
from ..config.memories import memory_kinds, memory_numbers
from ..hf import FwPKMForCausalLM, FwPKMHFConfig
from ..hf.mlp_fields import PKM_LEAST
from ..libraries.probes import installed
from ..processes.freed_memory import keep_freed_memory
from .convert_options import Memory
from .export_reading import read_export_config, read_export_tokenizer
from .hf_folder import DTYPES, check_output, empty_model, fill_model, published, write_model
from .library_messages import quiet_libraries
from .model_card import model_card
from .special_tokens import SpecialIds, begins_with_bos, bos_doubt, sentencepiece_ids, tiktoken_ids
from .tokenizer_export import convert_tokenizer, save_tokenizer
from .weight_mapping import megatron_to_hf
from .weight_rules import KIND_TABLES, WeightShapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..checkpoint.checkpoint_reader import CheckpointContents

logger = logging.getLogger("megatron_fwpkm")

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


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    dtype: str = "float32",
    memory: Memory | None = None,
    tokenizer: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint as a Hugging Face folder; it appears whole or not at all.

    Args:
        checkpoint: checkpoint folder, or a run's --save folder for its latest.
        output: folder to write.
        dtype: of the slow weights: float32, bfloat16 or float16. The memory's tables stay float32.
        memory: `initial`: every text starts from the memory before any write. `trained`: from the memory as training
            left it (replica 0). Default: what the run's --fwpkm-reset means, `trained` for never, else `initial`.
        tokenizer: write the tokenizer too.
        overwrite: replace an existing folder.

    Returns:
        The folder.

    Raises:
        ValueError: no checkpoint there, the folder exists, a tokenizer that cannot be written, or weights that do not
            map (all are listed).
    """
    target = Path(output)
    check_output(target, overwrite)
    contents = checkpoint_contents(checkpoint)
    with quiet_libraries(), published(target) as folder:
        model = hf_model(contents, memory=memory, dtype=dtype)
        write_model(model, folder, [kind.name for kind in kinds_in_use(contents.config)])
        if tokenizer:
            data, add_bos = contents.config.data, begins_with_bos(contents)
            written = save_tokenizer(contents.tokenizer_path, data, folder, add_bos=add_bos)
            if doubt := bos_doubt(contents, written):
                logger.warning("%s", doubt)
        (folder / "README.md").write_text(model_card(contents, model), encoding="utf-8")
    return target


def checkpoint_contents(path: str | Path) -> CheckpointContents:
    """`checkpoint_reader.read_checkpoint`, imported when it is needed and without remarks."""
    with quiet_libraries():
        installed()  # hides from Megatron what is only half installed
        from ..checkpoint.checkpoint_reader import read_checkpoint

        return read_checkpoint(path)


def hf_model(contents: CheckpointContents, *, memory: Memory | None = None, dtype: str = "float32") -> FwPKMForCausalLM:
    """The Hugging Face model of a checkpoint's contents, in evaluation mode; arguments as in `export`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of: {', '.join(DTYPES)}")
    chosen = default_memory(contents.config) if memory is None else memory
    config = hf_config(contents, chosen)
    model = empty_model(config)
    names = set(model.state_dict())
    if config.tie_word_embeddings:
        names.discard("lm_head.weight")
    tables = {
        f"model.layers.{number - 1}.memory.{name}": tensor
        for number in memory_numbers(contents.config)
        for name, tensor in fast_weights(contents, number, chosen).items()
    }
    slow_names = names - {name for name, _ in model.named_buffers()}
    state = megatron_to_hf(contents.slow, weight_shapes(contents), layer_plan(contents.config), slow_names)
    return fill_model(model, state | tables, dtype, str(contents.path))


def default_memory(config: PretrainConfig) -> Memory:
    """The memory a stream starts from under the run's resets."""
    return "trained" if all(memory.options.reset == "never" for memory in memory_kinds(config)) else "initial"


def fast_weights(contents: CheckpointContents, layer_number: int, memory: Memory) -> dict[str, Tensor]:
    """Whole fast weights of a layer (counted from 1) by name.

    Raises:
        ValueError: the checkpoint holds no memory for the layer.
    """
    if memory == "trained":
        if layer_number not in contents.fast:
            raise ValueError(f"{contents.path} contains no memory for layer {layer_number}; use --memory initial")
        return contents.fast[layer_number].tables
    kind = layer_plan(contents.config)[layer_number - 1].memory
    assert kind is not None, f"layer {layer_number} has no memory"
    return KIND_TABLES[kind](contents.config, layer_number)


def weight_shapes(contents: CheckpointContents) -> WeightShapes:
    """What the weight table needs to know of the model."""
    model, linear = contents.config.model, contents.config.linear_attention
    groups = num_query_groups(model)
    return WeightShapes(
        groups,
        model.num_attention_heads // groups,
        kv_channels(model),
        contents.vocab_size,
        contents.padded_vocab_size,
        model.attention_output_gate,
        linear_key_heads=linear.num_key_heads,
        linear_value_heads=linear.num_value_heads,
        linear_key_dim=linear.key_head_dim,
    )


def hf_config(contents: CheckpointContents, memory: Memory) -> FwPKMHFConfig:
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


def hf_model_from_checkpoint(
    path: str | Path, *, tokenizer: bool = True
) -> tuple[FwPKMForCausalLM, PreTrainedTokenizerFast | None]:
    """Load an export or a Megatron checkpoint (folder, or a run's --save folder) alike.

    Returns:
        The model in evaluation mode and float32, and its tokenizer, None when there is none or it is not asked for.

    Raises:
        ValueError: the path is neither, or damaged, or its tokenizer cannot be converted, with the reason.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        contents = checkpoint_contents(folder)
        if not tokenizer:
            return hf_model(contents), None
        data, add_bos = contents.config.data, begins_with_bos(contents)
        return hf_model(contents), convert_tokenizer(contents.tokenizer_path, data, add_bos=add_bos)
    with quiet_libraries():
        config = read_export_config(folder)
        model = FwPKMForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
        if not tokenizer or not (folder / "tokenizer_config.json").is_file():
            return model, None
        return model, read_export_tokenizer(folder, model.config.vocab_size)


def usable_device(name: str) -> torch.device:
    """The device that --device names; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(chosen)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} is not available: {str(error).splitlines()[0]}") from error
    return device


def load_for_text(path: str | Path, device: str = "auto") -> tuple[FwPKMForCausalLM, PreTrainedTokenizerFast]:
    """`hf_model_from_checkpoint` on a device (`auto`: CUDA where there is one), for work that needs a tokenizer.

    On a CPU the process keeps freed memory from here on (`keep_freed_memory`).

    Raises:
        ValueError: as there; an unknown device; or no tokenizer.
    """
    target = usable_device(device)
    if target.type == "cpu":
        keep_freed_memory()
    model, tokenizer = hf_model_from_checkpoint(path)
    if tokenizer is None:
        raise ValueError(
            f"{path} contains no tokenizer to read and write text with; export again without --no-tokenizer"
        )
    model.to(target)
    return model, tokenizer


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
