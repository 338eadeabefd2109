"""Repairs that let megatron-core's optimizers save what they hold, and resume with this run's options.

Loading (any optimizer): a state dict brings the parameter groups of the run that saved it, with its learning rates,
betas, epsilon and weight decay, and Megatron's scheduler takes the peak and the end of every group from there. What
this run was told would stand in its log and nowhere else.

The rest is about the distributed optimizer.

Saving (any Adam): gradients lie in buckets with padding behind each, the states that are gathered lie without it, and
the positions that cut them into parameters count it. From the second bucket on every parameter's states are another's:
with overlapped gradient reduction, and with tied embeddings over pipeline stages (NVIDIA/Megatron-LM, pull request
5077).

Loading (torch's AdamW, so without Transformer Engine and Apex): it keeps `step` as a tensor per parameter, and the
distributed optimizer was written for FusedAdam, which does not. Left alone, loading fails or, worse, goes on with a
drifting step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from ..distributed.megatron_versions import groups_found_by_kind

_NO_OPTIONS = {"params", "step"}
"""What else stands in a parameter group."""


def _distributed(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    """The distributed optimizers inside `optimizer`."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if isinstance(part, DistributedOptimizer)]


def _affected(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    """Those of them that step torch's Adam."""
    torch_adam = (torch.optim.Adam, torch.optim.AdamW)
    return [part for part in _distributed(optimizer) if isinstance(part.optimizer, torch_adam)]


@contextmanager
def own_options_kept(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Inside, `optimizer` loads its state; the options of its parameter groups stay as they were made.

    `step`, which FusedAdam counts there, is loaded. Learning rate and weight decay of the moment are the scheduler's.
    """
    made = [{k: v for k, v in group.items() if k not in _NO_OPTIONS} for group in optimizer.param_groups]
    with groups_found_by_kind():
        yield
    for group, options in zip(optimizer.param_groups, made, strict=True):
        group.update(options)


def _without_padding(buffer: Any) -> dict[torch.nn.Parameter, tuple[int, int, int]]:
    """Start, end and bucket of every parameter, where the buckets stand without the padding behind them."""
    padding, removed = 0, []
    for bucket in buffer.buckets:
        removed.append(padding)
        padding += bucket.grad_data.numel() - bucket.numel_unpadded
    places = buffer.param_index_map.items()
    return {param: (start - removed[bucket], end - removed[bucket], bucket) for param, (start, end, bucket) in places}


@contextmanager
def repaired_positions(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Inside, `optimizer.sharded_state_dict` finds every parameter's states where they are."""
    buffers = [buffer for part in _distributed(optimizer) for buffer in part.buffers]
    kept = [buffer.param_index_map for buffer in buffers]
    for buffer in buffers:
        buffer.param_index_map = _without_padding(buffer)
    try:
        yield
    finally:
        for buffer, places in zip(buffers, kept, strict=True):
            buffer.param_index_map = places


def _copy_known_states(self: DistributedOptimizer, model_param: torch.nn.Parameter, tensors: dict[str, Any]) -> None:
    """Like the method it replaces, for the states that were loaded; `step` is restored from the parameter groups."""
    group_index, group_order = self.model_param_group_index_map[model_param]
    main_param = self.optimizer.param_groups[group_index]["params"][group_order]
    for key, target in {"param": main_param, **self.optimizer.state[main_param]}.items():
        if key in tensors:
            target.detach().copy_(tensors[key])


@contextmanager
def repaired_for_loading(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Inside, `optimizer` builds its state dict for loading and loads it correctly.

    (1) Its state is made first, for it is empty before the first step and the state dict would ask for nothing.
    (2) States that a checkpoint does not hold (`step`) are skipped. (3) At exit every parameter gets a `step` of its
    own: loading gives all of them one tensor, which every step would then advance once per parameter.
    """
    parts = _affected(optimizer)
    for part in parts:
        part._init_optimizer_states_with_dummy_values()
        part._set_main_param_and_optimizer_states = MethodType(_copy_known_states, part)
    try:
        yield
    finally:
        for part in parts:
            del part._set_main_param_and_optimizer_states
            for state in part.optimizer.state.values():
                if "step" in state:
                    state["step"] = state["step"].clone()
