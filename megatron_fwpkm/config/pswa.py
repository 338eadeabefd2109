"""Probabilistic sliding-window attention: in which training steps full attention sees a window only.

The draw of a step depends on --seed and on the number of the step alone. So it is the same on all ranks and in all
micro-batches, no other random number changes, and a resumed or rewound run, which knows the number of its step, draws
what the uninterrupted one draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

from .layer_kind import LAYER_KINDS
from .layer_pattern import layer_mixers
from .pretrain import PretrainConfig


def is_windowed(config: PretrainConfig, iteration: int) -> bool:
    """Whether full attention sees --window-size only in the training step after `iteration` others."""
    probability = config.fwpkm.pswa_probability
    return probability > 0 and Random(f"pswa {config.training.seed} {iteration}").random() < probability


def count_windowed(config: PretrainConfig, iterations: Iterable[int]) -> int:
    """How many of some training steps `is_windowed`."""
    return sum(is_windowed(config, iteration) for iteration in iterations)


def pswa_window(config: PretrainConfig) -> int | None:
    """The tokens before a token that full attention sees in such a step; None without --fwpkm-pswa-probability."""
    window = config.model.window_size
    return window[0] if config.fwpkm.pswa_probability and window is not None else None


def pswa_problems(config: PretrainConfig) -> Iterator[str]:
    """Every violated rule in a sentence; --layer-pattern must be valid."""
    probability, model = config.fwpkm.pswa_probability, config.model
    if not probability:
        return
    if not any(LAYER_KINDS[name].narrowed_in_training for name in layer_mixers(model)):
        names = [kind.name for kind in LAYER_KINDS.values() if kind.narrowed_in_training]
        yield (
            f"--fwpkm-pswa-probability {probability:g} has no effect with --layer-pattern {model.layer_pattern}, which "
            f"has no layer with full attention ({', '.join(names)}): remove one of them"
        )
    elif model.window_size is None:
        yield (
            f"--fwpkm-pswa-probability {probability:g} needs the window that full attention then sees: give "
            "--window-size LEFT,0, as in 511,0"
        )
    if config.implementation.attention_backend == "te":
        yield (
            f"--attention-backend te keeps its windows, but --fwpkm-pswa-probability {probability:g} changes them from "
            "step to step: use --attention-backend auto or local"
        )
