"""Three repairs that let Megatron's distributed optimizer resume on torch's AdamW.

Without Transformer Engine and Apex, megatron-core 0.16.1 steps torch.optim.AdamW, which keeps `step` as a tensor per
parameter, and its DistributedOptimizer was written for FusedAdam, which does not. Left alone, loading fails or, worse,
continues with a drifting step. With FusedAdam nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def _affected(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    """The distributed optimizers inside `optimizer` that step torch's Adam."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    torch_adam = (torch.optim.Adam, torch.optim.AdamW)
    return [p for p in parts if isinstance(p, DistributedOptimizer) and isinstance(p.optimizer, torch_adam)]


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
