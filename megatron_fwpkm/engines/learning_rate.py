"""Schedule of learning rates and weight decay: the flags in steps, handed to Megatron's OptimizerParamScheduler."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..config import OptimizerConfig

if TYPE_CHECKING:
    from megatron.core.optimizer import MegatronOptimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler


@dataclass(frozen=True)
class Schedule:
    """A schedule in iterations; field names are those of Megatron's OptimizerParamScheduler."""

    init_lr: float
    max_lr: float
    min_lr: float
    lr_warmup_steps: int
    lr_decay_steps: int
    lr_decay_style: str
    wsd_decay_steps: int | None
    lr_wsd_decay_style: str | None


def make_schedule(config: OptimizerConfig, train_iters: int) -> Schedule:
    """Resolve the defaults of the schedule's flags for a run of `train_iters` iterations.

    Raises ValueError when the warm-up does not end before the decay, the final decay is longer than the decay, or the
    end value lies above the peak.
    """
    decay = train_iters if config.lr_decay_iters is None else config.lr_decay_iters
    if decay < 1:
        raise ValueError(f"--lr-decay-iters {decay} must be at least 1")
    if not 0 <= config.lr_warmup_iters < decay:
        raise ValueError(
            f"--lr-warmup-iters {config.lr_warmup_iters} must be at least 0 and below --lr-decay-iters {decay} "
            "(default --train-iters); shorten the warm-up"
        )
    if not 0 <= config.min_lr <= config.lr:
        raise ValueError(f"--min-lr {config.min_lr} must be between 0 and --lr {config.lr}")
    final: int | None = None
    if config.lr_decay_style == "WSD":
        final = max(1, decay // 5) if config.lr_wsd_decay_iters is None else config.lr_wsd_decay_iters
        if not 0 < final <= decay - config.lr_warmup_iters:
            raise ValueError(
                f"--lr-wsd-decay-iters {final} must be at least 1 and fit between --lr-warmup-iters "
                f"{config.lr_warmup_iters} and --lr-decay-iters {decay}"
            )
    return Schedule(
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.lr_warmup_iters,
        lr_decay_steps=decay,
        lr_decay_style=config.lr_decay_style,
        wsd_decay_steps=final,
        lr_wsd_decay_style=config.lr_wsd_decay_style if final is not None else None,
    )


def build_scheduler(
    optimizer: MegatronOptimizer, config: OptimizerConfig, train_iters: int, *, from_checkpoint: bool = False
) -> OptimizerParamScheduler:
    """Megatron's scheduler, stepped by 1 per iteration.

    The flags win over what a checkpoint says (`override_opt_param_scheduler`): a resumed run may be given another
    peak or length, and the difference is reported by the checkpoint manager. With `from_checkpoint` what is loaded
    wins: the flags hold the same values then, but for the iterations in which weight decay grows.

    Raises ValueError as `make_schedule` does.
    """
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    start, end = config.weight_decay, config.weight_decay
    if config.weight_decay_incr_style != "constant":
        assert config.start_weight_decay is not None and config.end_weight_decay is not None, "validated"
        start, end = config.start_weight_decay, config.end_weight_decay
    return OptimizerParamScheduler(
        optimizer,
        **asdict(make_schedule(config, train_iters)),
        start_wd=start,
        end_wd=end,
        wd_incr_steps=train_iters,
        wd_incr_style=config.weight_decay_incr_style,
        use_checkpoint_opt_param_scheduler=from_checkpoint,
        override_opt_param_scheduler=not from_checkpoint,
    )
