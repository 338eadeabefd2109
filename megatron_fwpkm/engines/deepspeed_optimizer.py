"""What DeepSpeed is given to train with: torch's AdamW, and gradients that are whole."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config import PretrainConfig
from ..layers.product_key_mlp import VALUES_MARK

OPTIONS_OF_GROUPS = ("max_lr", "min_lr", "wd_mult")
"""What Megatron's scheduler reads of a parameter group."""
_NORMS_OF_HEADS = re.compile(r"\b[qk]_layernorm\.")


class _Group(NamedTuple):
    """What tells parameter groups apart; the values of static memories have one whatever its numbers are."""

    max_lr: float
    min_lr: float
    wd_mult: float
    is_values: bool = False


def build_adamw(run: PretrainConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW with Megatron's parameter groups.

    Biases and norms have no weight decay; --decoupled-lr and the values of static memories have groups of their own.
    """
    config = run.optimizer
    # What has no options of its own comes first, as in Megatron's optimizer: its learning rate is the run's.
    groups: dict[_Group, list[nn.Parameter]] = {_Group(config.lr, config.min_lr, 1.0): []}
    for name, parameter in model.named_parameters():
        groups.setdefault(_group_of(run, name, parameter), []).append(parameter)
    made: list[dict[str, Any]] = [
        {"params": members, **{name: getattr(key, name) for name in OPTIONS_OF_GROUPS}}
        for key, members in groups.items()
    ]
    return torch.optim.AdamW(
        made,
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )


def _group_of(run: PretrainConfig, name: str, parameter: nn.Parameter) -> _Group:
    config, pkm = run.optimizer, run.pkm
    if getattr(parameter, VALUES_MARK, False):
        factor = pkm.values_lr_mult
        return _Group(factor * config.lr, factor * config.min_lr, pkm.values_wd_mult, is_values=True)
    decay = 0.0 if parameter.dim() == 1 or name.endswith(".bias") else 1.0
    if config.decoupled_lr is None or not getattr(parameter, "is_embedding_or_output_parameter", False):
        return _Group(config.lr, config.min_lr, decay)
    least = config.min_lr if config.decoupled_min_lr is None else config.decoupled_min_lr
    return _Group(config.decoupled_lr, least, decay)


def sum_partial_gradients(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Let replicated parameters that see a part of what a layer sees sum their gradients over `group`.

    They are those on shards of the sequence, and the norms of queries and keys, which see a rank's heads. Megatron sums
    them once a step and DeepSpeed does not know of them: replicated weights would drift apart without a sign. Must be
    called before DeepSpeed adds its own hooks, which take the gradients away.
    """

    def over_group(gradient: Tensor) -> Tensor:
        """The sum of a gradient over the ranks."""
        total = gradient.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    if group.size() == 1:
        return
    for name, parameter in model.named_parameters():
        if getattr(parameter, "sequence_parallel", False) or _NORMS_OF_HEADS.search(name):
            parameter.register_hook(over_group)
