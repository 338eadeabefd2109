"""An optimizer state that another library's AdamW saved: the number of steps, which corrects the moments.

torch's AdamW counts its steps for each parameter, of which Megatron saves one count; the FusedAdam of Transformer
Engine and Apex counts them in each parameter group. Loaded as it was saved, the count stands where the other does not
look: torch's AdamW fails, and FusedAdam begins to count anew, without an error, and corrects moments that need no
correction. Megatron's distributed optimizer saves the count in the groups for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer

_COMMON = "common_step"
"""Where Megatron saves the one count of torch's AdamW, among the states of the parameters."""


def move_step_count(loaded: dict[str, Any], optimizer: MegatronOptimizer) -> None:
    """Move the count in a state that is about to be loaded to where this run's AdamW looks for it."""
    torch_adam = (torch.optim.Adam, torch.optim.AdamW)
    inner = [part.optimizer for part in getattr(optimizer, "chained_optimizers", [optimizer])]
    per_parameter = any(isinstance(one, torch_adam) for one in inner)
    for saved in _adam_states(loaded):
        groups, states = saved["param_groups"], saved["state"]
        if per_parameter:
            counts = [group.pop("step") for group in groups if "step" in group]
            if counts:
                states[_COMMON] = torch.tensor(float(max(counts)))  # a group without parameters does not count
        elif _COMMON in states:
            count = int(states.pop(_COMMON))
            for group in groups:
                group["step"] = count


def _adam_states(loaded: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The state dicts of the optimizers inside Megatron's."""
    if "param_groups" in loaded and "state" in loaded:
        yield loaded
        return
    for value in loaded.values():
        if isinstance(value, dict):
            yield from _adam_states(value)
