"""Optimizer of the slow weights and its schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, SCHEDULE, Above, AtLeast, BelowOne


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for the slow weights; no optimizer updates the fast weights."""

    lr: Annotated[float, Above(0), MAY_CHANGE, SCHEDULE] = 1e-3
    """Peak learning rate."""
    min_lr: Annotated[float, AtLeast(0), MAY_CHANGE, SCHEDULE] = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: Annotated[Literal["constant", "linear", "cosine", "WSD"], MAY_CHANGE, SCHEDULE] = "cosine"
    """Shape of the decay after warm-up."""
    lr_warmup_iters: Annotated[int, AtLeast(0), MAY_CHANGE, SCHEDULE] = 0
    """Number of iterations of linear warm-up from 0."""
    lr_decay_iters: Annotated[int | None, AtLeast(1), MAY_CHANGE, SCHEDULE] = None
    """Iteration at which the decay ends (default: the last training iteration)."""
    lr_wsd_decay_iters: Annotated[int | None, AtLeast(1), MAY_CHANGE, SCHEDULE] = None
    """Length in iterations of the final decay of the WSD schedule (default: a fifth of the decay iterations)."""
    lr_wsd_decay_style: Annotated[
        Literal["exponential", "linear", "cosine", "minus_sqrt"],
        MAY_CHANGE, SCHEDULE,
    ] = "minus_sqrt"
    """Shape of the final decay of the WSD schedule."""
    decoupled_lr: Annotated[float | None, Above(0), MAY_CHANGE, SCHEDULE] = None
    """Peak learning rate of the token embedding and the output layer (default: --lr)."""
    decoupled_min_lr: Annotated[float | None, AtLeast(0), MAY_CHANGE, SCHEDULE] = None
    """With --decoupled-lr: learning rate of the token embedding and the output layer at the end of the decay (default:
    --min-lr)."""
    weight_decay: Annotated[float, AtLeast(0), MAY_CHANGE, SCHEDULE] = 0.1
    """Decoupled weight decay if --weight-decay-incr-style is constant; biases and norms are not decayed."""
    start_weight_decay: Annotated[float | None, AtLeast(0), MAY_CHANGE, SCHEDULE] = None
    """With --weight-decay-incr-style linear or cosine: weight decay at the first iteration (default: none)."""
    end_weight_decay: Annotated[float | None, AtLeast(0), MAY_CHANGE, SCHEDULE] = None
    """With --weight-decay-incr-style linear or cosine: weight decay at the last training iteration (default: none)."""
    weight_decay_incr_style: Annotated[Literal["constant", "linear", "cosine"], MAY_CHANGE, SCHEDULE] = "constant"
    """How the weight decay changes over the run: not at all (constant), or from --start-weight-decay to
    --end-weight-decay (linear, cosine)."""
    adam_implementation: Annotated[Literal["auto", "transformer_engine", "apex", "torch"], NOT_COMPARED] = "auto"
    """Library whose AdamW is used; auto selects the first of Transformer Engine, Apex and torch that is installed and
    works here."""
    adam_beta1: Annotated[float, BelowOne(), MAY_CHANGE] = 0.9
    """Decay rate of AdamW's first moment."""
    adam_beta2: Annotated[float, BelowOne(), MAY_CHANGE] = 0.95
    """Decay rate of AdamW's second moment."""
    adam_eps: Annotated[float, Above(0), MAY_CHANGE] = 1e-8
    """Epsilon of AdamW."""
    clip_grad: Annotated[float, AtLeast(0), MAY_CHANGE] = 1.0
    """Clip the global gradient norm to this value; 0 disables clipping."""
