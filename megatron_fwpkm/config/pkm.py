"""The static product key memory and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .field_metadata import ARCHITECTURE, MAY_CHANGE, SAME_RUN, TAKEN_WITH_SHAPE, TRAINING_ONLY, Above, AtLeast, AtMost


@dataclass(frozen=True)
class PKMConfig:
    """Static product key memory in the place of a layer's MLP; every flag begins with --pkm-."""

    layer_numbers: Annotated[tuple[int, ...], SAME_RUN, TAKEN_WITH_SHAPE] = ()
    """Layers, counted from 1, that have a static product key memory in the place of their MLP. The optimizer trains it,
    like any weight (default: none). With --finetune the checkpoint may have an MLP there, or the other way round."""
    num_heads: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 4
    """Number of query heads; all heads read the same values."""
    num_subkeys: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 512
    """Number of sub-keys in each half of the keys; the memory has num_subkeys squared slots."""
    key_dim: Annotated[int, AtLeast(2), AtMost(2**20), ARCHITECTURE] = 512
    """Width of one head's query, both halves together."""
    value_dim: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 512
    """Width of one slot's value."""
    topk: Annotated[int, AtLeast(1), AtMost(2**20), MAY_CHANGE] = 32
    """Number of slots that each head reads per token."""
    values_lr_mult: Annotated[float, Above(0), AtMost(10**6), MAY_CHANGE, TRAINING_ONLY] = 1.0
    """Learning rate of the values as a multiple of --lr and --min-lr: few tokens read any one of them."""
    values_wd_mult: Annotated[float, AtLeast(0), AtMost(10**6), MAY_CHANGE, TRAINING_ONLY] = 1.0
    """Weight decay of the values as a multiple of --weight-decay; it also moves values that no token has read."""
