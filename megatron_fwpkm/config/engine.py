"""The engine: which library runs the steps of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, SAME_RUN, Between


@dataclass(frozen=True)
class EngineConfig:
    """The library that owns gradients and optimizer."""

    engine: Annotated[Literal["megatron", "deepspeed"], SAME_RUN] = "megatron"
    """Library that runs the training steps: megatron (Megatron-Core) or deepspeed (ZeRO, which is installed by the
    extra deepspeed)."""
    zero_stage: Annotated[int | None, Between(0, 3), MAY_CHANGE] = None
    """With --engine deepspeed: what ZeRO shards over the data-parallel ranks. 0: nothing, 1: the optimizer states, 2:
    also the gradients, 3: also the weights (default: 1)."""
    deepspeed_config: Annotated[str | None, NOT_COMPARED] = None
    """With --engine deepspeed: JSON file with more options of DeepSpeed. They are merged with those that follow from
    the flags; a key that contradicts a flag is an error."""
