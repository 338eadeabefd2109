"""Rules on rotary positions."""

from __future__ import annotations

from collections.abc import Iterator

from .derived import kv_channels, rotary_dim
from .model import ModelConfig
from .pretrain import PretrainConfig


def position_problems(config: PretrainConfig) -> Iterator[str]:
    """Every violated rule in a sentence."""
    model, default = config.model, ModelConfig()
    rotated = rotary_dim(model)
    if rotated < 2 or rotated % 2:
        yield (
            f"--rotary-percent {model.rotary_percent} of a head of {kv_channels(model)} rotates {rotated} channels, "
            "which must be an even number of at least 2; change it or --kv-channels"
        )
    if not model.use_rope_scaling and model.rope_scaling_factor != default.rope_scaling_factor:
        yield (
            f"--rope-scaling-factor {model.rope_scaling_factor:g} has no effect without --use-rope-scaling: add it, "
            "or remove --rope-scaling-factor"
        )
    if model.rotary_base != int(model.rotary_base):
        yield f"--rotary-base {model.rotary_base} must be an integer; use {round(model.rotary_base)}"
    yield from _yarn_without(model, default) if model.rope_type != "yarn" else _yarn(config)


def _yarn_without(model: ModelConfig, default: ModelConfig) -> Iterator[str]:
    """What has no effect without it."""
    names = ("rotary_scaling_factor", "yarn_original_max_position_embeddings", "yarn_beta_fast", "yarn_beta_slow")
    for name in names:
        value = getattr(model, name)
        if value != getattr(default, name):
            flag = "--" + name.replace("_", "-")
            yield f"{flag} {value:g} has no effect without --rope-type yarn: add it, or remove {flag}"


def _yarn(config: PretrainConfig) -> Iterator[str]:
    model = config.model
    if model.rotary_scaling_factor == 1:
        yield (
            "--rope-type yarn has no effect with --rotary-scaling-factor 1: give the factor by which texts are longer, "
            "such as 4"
        )
    if model.use_rope_scaling:
        yield "--rope-type yarn and --use-rope-scaling both stretch the rotary positions: remove one of them"
    if model.yarn_beta_fast <= model.yarn_beta_slow:
        yield (
            f"--yarn-beta-fast {model.yarn_beta_fast:g} must be greater than --yarn-beta-slow "
            f"{model.yarn_beta_slow:g}: more turns are faster"
        )
    if config.implementation.rope_fusion:
        yield (
            "--rope-fusion cannot scale the cosines, as --rope-type yarn does: remove --rope-fusion, or use "
            "--no-rope-fusion"
        )
