"""The optimizer of the slow weights: Megatron's AdamW with its parameter groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizers
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    MegatronOptimizer,
    distrib_optimizer,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.optimizer_config import ParamKey
from megatron.core.optimizer_param_scheduler import ParamGroupOverride

from ..config import PretrainConfig
from ..layers.product_key_mlp import VALUES_MARK
from ..libraries.choices import choose_adam
from ..libraries.probes import installed

_FUSED_ADAM = {"transformer_engine": "transformer_engine.pytorch.optimizers", "apex": "apex.optimizers"}
"""The module of each library that has its FusedAdam."""


def build_optimizer(config: PretrainConfig, chunks: Sequence[DistributedDataParallel]) -> MegatronOptimizer:
    """Megatron's optimizer over the chunks of this rank; biases and norms have no weight decay."""
    use_adam(choose_adam(config, installed()).name)
    wanted = config.optimizer
    made = MegatronOptimizerConfig(
        optimizer="adam",
        lr=wanted.lr,
        min_lr=wanted.min_lr,
        decoupled_lr=wanted.decoupled_lr,
        decoupled_min_lr=wanted.decoupled_min_lr,
        weight_decay=wanted.weight_decay,
        adam_beta1=wanted.adam_beta1,
        adam_beta2=wanted.adam_beta2,
        adam_eps=wanted.adam_eps,
        # Without clipping the norm is still measured, for the log and the guards: nothing exceeds infinity.
        clip_grad=wanted.clip_grad if wanted.clip_grad > 0 else math.inf,
        bf16=config.training.bf16,
        params_dtype=torch.bfloat16 if config.training.bf16 else torch.float32,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
    )
    return get_megatron_optimizer(made, list(chunks), config_overrides=_overrides(made, config))


def use_adam(name: str) -> None:
    """Make Megatron take the AdamW of `transformer_engine`, `apex` or `torch`.

    It makes that choice itself, when it is imported, by what can be imported then; and its distributed optimizer looks
    up at every save and load which Adam it is, because each counts its steps in another place.
    """
    made: dict[str, Any] = {"Adam": torch.optim.AdamW, "USING_PYTORCH_OPTIMIZER": name == "torch"}
    if name != "torch":
        made["Adam"] = import_module(_FUSED_ADAM[name]).FusedAdam
    sharded = {
        "Adam": made["Adam"],
        "HAVE_APEX_OR_TE": name != "torch",
        "USING_TE_OPTIMIZER": name == "transformer_engine",
        "USING_APEX_OPTIMIZER": name == "apex",
    }
    for module, values in ((megatron_optimizers, made), (distrib_optimizer, sharded)):
        for key, value in values.items():
            assert hasattr(module, key), f"{module.__name__} of this megatron-core has no {key}"
            setattr(module, key, value)


def _overrides(config: MegatronOptimizerConfig, run: PretrainConfig) -> dict[ParamKey, ParamGroupOverride]:
    """Megatron's own, with a mark on the group of --decoupled-lr, and the group of the values of static memories.

    Loading finds a saved group by its kind, because another run may have other learning rates: without the mark a
    group would be taken for that of the other weights.
    """
    found: dict[ParamKey, ParamGroupOverride] = get_standard_config_overrides(config)
    for override in found.values():
        if "max_lr" in override:
            override["is_decoupled_lr"] = True
    if run.pkm.layer_numbers:
        found[ParamKey(attr=VALUES_MARK)] = _group_of_values(run)
    return found


def _group_of_values(run: PretrainConfig) -> ParamGroupOverride:
    """A group of its own whatever its factors are, for they may change when a run resumes.

    Its weight decay is not given by `wd_mult`, which is part of a group's kind.
    """
    config, pkm = run.optimizer, run.pkm
    constant = config.weight_decay_incr_style == "constant"
    start, end = (config.weight_decay,) * 2 if constant else (config.start_weight_decay, config.end_weight_decay)
    assert start is not None and end is not None, "validated"
    return {
        "max_lr": pkm.values_lr_mult * config.lr,
        "min_lr": pkm.values_lr_mult * config.min_lr,
        "start_wd": pkm.values_wd_mult * start,
        "end_wd": pkm.values_wd_mult * end,
        "is_decoupled_lr": VALUES_MARK,
    }
