"""What DeepSpeed is given to train with: torch's AdamW, and gradients that are whole."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config import OptimizerConfig

OPTIONS_OF_GROUPS = ("max_lr", "min_lr", "wd_mult")
"""What Megatron's scheduler reads of a parameter group."""
_NORMS_OF_HEADS = re.compile(r"\b[qk]_layernorm\.")


def build_adamw(config: OptimizerConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW with Megatron's parameter groups: biases and norms without weight decay, --decoupled-lr apart."""
    # What has no options of its own comes first, as in Megatron's optimizer: its learning rate is the run's.
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {(config.lr, config.min_lr, 1.0): []}
    for name, parameter in model.named_parameters():
        groups.setdefault(_group_of(config, name, parameter), []).append(parameter)
    made: list[dict[str, Any]] = [
        {"params": members, **dict(zip(OPTIONS_OF_GROUPS, key, strict=True))} for key, members in groups.items()
    ]
    return torch.optim.AdamW(
        made,
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )


def _group_of(config: OptimizerConfig, name: str, parameter: nn.Parameter) -> tuple[float, float, float]:
    """Peak and end of the learning rate, and the factor of weight decay."""
    decay = 0.0 if parameter.dim() == 1 or name.endswith(".bias") else 1.0
    if config.decoupled_lr is None or not getattr(parameter, "is_embedding_or_output_parameter", False):
        return config.lr, config.min_lr, decay
    least = config.min_lr if config.decoupled_min_lr is None else config.decoupled_min_lr
    return config.decoupled_lr, least, decay


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
