"""Rules on the implementation of the layers that hold whatever is installed."""

from __future__ import annotations

from collections.abc import Iterator

from .derived import kv_channels
from .layer_implementation import ImplementationConfig
from .layer_kinds import kinds_in_use
from .layer_pattern import layer_windows
from .neighbours import near_multiples
from .pretrain import PretrainConfig

_TE_LAYERS = "--transformer-impl transformer_engine"
_WIDEST_HEAD = 256


def implementation_problems(config: PretrainConfig) -> Iterator[str]:
    """Every violated rule in a sentence."""
    yield from _attention(config)
    yield from _rope(config)
    yield from _fp8(config)


def why_no_engine_attention(config: PretrainConfig) -> str | None:
    """What in the options keeps --attention-backend auto from Transformer Engine's attention; None for nothing."""
    width = kv_channels(config.model)
    if not config.training.bf16:
        return "no --bf16, which Transformer Engine's needs"
    if config.fwpkm.pswa_probability:
        return "Transformer Engine's keeps its windows, which --fwpkm-pswa-probability changes from step to step"
    if config.data.reset_attention_mask:
        return "Transformer Engine's does not keep documents apart, as --reset-attention-mask asks"
    if width % 8 or width > _WIDEST_HEAD:
        return f"Transformer Engine's takes heads of 8, 16, ... {_WIDEST_HEAD} channels, and these have {width}"
    return None


def _attention(config: PretrainConfig) -> Iterator[str]:
    chosen, context = config.implementation, config.parallel.context_parallel_size
    if chosen.attention_backend != "te":
        return
    if chosen.transformer_impl == "local":
        yield f"--attention-backend te needs {_TE_LAYERS}: give it, or --attention-backend local"
    if not any(kind.core_attention for kind in kinds_in_use(config)):
        return
    if config.data.reset_attention_mask:
        yield (
            "--attention-backend te cannot keep documents apart, as --reset-attention-mask asks: use "
            "--attention-backend auto, or --no-reset-attention-mask"
        )
    if context > 1 and not config.training.bf16:
        yield (
            f"--attention-backend te with --context-parallel-size {context} computes in bfloat16 only: give --bf16, or "
            "--attention-backend local"
        )
    if context > 1 and any(window is not None for window in layer_windows(config.model)):
        yield (
            f"--attention-backend te has no windows with --context-parallel-size {context}: use "
            "--attention-backend auto, which computes those layers itself"
        )


def _rope(config: PretrainConfig) -> Iterator[str]:
    chosen = config.implementation
    if not chosen.rope_fusion:
        return
    if chosen.transformer_impl == "local":
        yield f"--rope-fusion needs {_TE_LAYERS}: give it, or remove --rope-fusion"
    if config.data.reset_position_ids:
        yield (
            "--rope-fusion needs the same positions in all sequences of a batch, and --reset-position-ids sets them "
            "for each: use one of them"
        )


def _fp8(config: PretrainConfig) -> Iterator[str]:
    chosen, default = config.implementation, ImplementationConfig()
    if chosen.fp8_format is None:
        for flag, value, usual in (
            ("--fp8-recipe", chosen.fp8_recipe, default.fp8_recipe),
            ("--fp8-margin", chosen.fp8_margin, default.fp8_margin),
        ):
            if value != usual:
                yield f"{flag} {value} has no effect without --fp8-format: give --fp8-format hybrid, or remove {flag}"
        return
    given = f"--fp8-format {chosen.fp8_format}"
    if chosen.transformer_impl == "local":
        yield f"{given} needs {_TE_LAYERS}: give it, or remove {given}"
    if not config.training.bf16:
        yield f"{given} computes in bfloat16 wherever it does not in FP8: give --bf16"
    if chosen.fp8_margin and chosen.fp8_recipe != "delayed":
        yield (
            f"--fp8-margin {chosen.fp8_margin} has no effect with --fp8-recipe {chosen.fp8_recipe}: remove it, or use "
            "--fp8-recipe delayed"
        )
    if config.training.cpu_offloading_num_layers:
        yield (
            f"--cpu-offloading-num-layers {config.training.cpu_offloading_num_layers} would also move the FP8 copies "
            f"of weights to the host: remove it or {given}"
        )
    yield from _fp8_sizes(config)


def _fp8_sizes(config: PretrainConfig) -> Iterator[str]:
    """FP8 cuts matrices into blocks: what a rank has of them must be whole ones."""
    parallel, training = config.parallel, config.training
    block = 32 if config.implementation.fp8_recipe == "mxfp8" else 16
    widths = {"--hidden-size": config.model.hidden_size}
    for kind in kinds_in_use(config):
        widths |= kind.fp8_widths(config)
    for what, width in widths.items():
        if width % block:
            yield (
                f"--fp8-recipe {config.implementation.fp8_recipe} needs multiples of {block}, and on a rank {what} is "
                f"{width}: use {near_multiples(width, block)}"
            )
    pieces = parallel.context_parallel_size * (parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1)
    tokens = training.micro_batch_size * config.model.seq_length // pieces
    if tokens % block:
        yield (
            f"--fp8-recipe {config.implementation.fp8_recipe} needs a multiple of {block} tokens on a rank, and "
            f"--micro-batch-size {training.micro_batch_size} times --seq-length {config.model.seq_length} gives it "
            f"{tokens}: change one of them"
        )
