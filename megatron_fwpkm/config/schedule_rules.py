"""Rules between the options of the schedule: learning rates and weight decay over the iterations."""

from __future__ import annotations

from collections.abc import Iterator

from .optimizer import OptimizerConfig
from .pretrain import PretrainConfig


def schedule_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for every violated rule."""
    yield from _learning_rate(config)
    yield from _decoupled(config.optimizer)
    yield from _weight_decay(config.optimizer)


def _learning_rate(config: PretrainConfig) -> Iterator[str]:
    optimizer, iterations = config.optimizer, config.training.train_iters
    decay = iterations if optimizer.lr_decay_iters is None else optimizer.lr_decay_iters
    source = "--train-iters" if optimizer.lr_decay_iters is None else "--lr-decay-iters"
    if optimizer.lr_warmup_iters >= decay:
        yield (
            f"--lr-warmup-iters {optimizer.lr_warmup_iters} is not below the end of the decay ({source} {decay}): "
            "shorten the warm-up"
        )
    if optimizer.min_lr > optimizer.lr:
        yield f"--min-lr {optimizer.min_lr} is greater than --lr {optimizer.lr}: lower it"
    final = optimizer.lr_wsd_decay_iters
    if final is None:
        return
    if optimizer.lr_decay_style != "WSD":
        yield (
            f"--lr-wsd-decay-iters {final} requires --lr-decay-style WSD, not {optimizer.lr_decay_style}: use WSD, "
            "or remove it"
        )
    elif optimizer.lr_warmup_iters < decay < final + optimizer.lr_warmup_iters:
        yield (
            f"--lr-wsd-decay-iters {final} does not fit between --lr-warmup-iters {optimizer.lr_warmup_iters} and "
            f"{source} {decay}: use at most {decay - optimizer.lr_warmup_iters}"
        )


def _decoupled(optimizer: OptimizerConfig) -> Iterator[str]:
    if optimizer.decoupled_lr is None:
        if optimizer.decoupled_min_lr is not None:
            yield f"--decoupled-min-lr {optimizer.decoupled_min_lr} requires --decoupled-lr"
        return
    flag, end, way = "--decoupled-min-lr", optimizer.decoupled_min_lr, "lower it"
    if end is None:
        flag, end, way = "--min-lr", optimizer.min_lr, "give --decoupled-min-lr"
    if end > optimizer.decoupled_lr:
        yield f"{flag} {end} is greater than --decoupled-lr {optimizer.decoupled_lr}: {way}"


def _weight_decay(optimizer: OptimizerConfig) -> Iterator[str]:
    style, start, end = optimizer.weight_decay_incr_style, optimizer.start_weight_decay, optimizer.end_weight_decay
    ends = {"--start-weight-decay": start, "--end-weight-decay": end}
    given = [f"{flag} {value}" for flag, value in ends.items() if value is not None]
    missing = [flag for flag, value in ends.items() if value is None]
    if style == "constant":
        if given:
            yield (
                f"{' and '.join(given)} requires --weight-decay-incr-style linear or cosine: with constant, "
                "--weight-decay applies throughout"
            )
    elif start is None or end is None:
        yield f"--weight-decay-incr-style {style} requires {' and '.join(missing)}"
    elif start > end:
        yield f"{' is greater than '.join(given)}: weight decay must not decrease; lower the start"
