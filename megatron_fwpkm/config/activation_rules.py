"""Rules between the options that say what is kept for the backward pass, and where."""

from __future__ import annotations

from collections.abc import Iterator

from .derived import chunk_layers
from .pretrain import PretrainConfig


def activation_problems(config: PretrainConfig) -> Iterator[str]:
    """Every violated rule of recompute and offload in a sentence."""
    yield from _recompute(config)
    yield from _offload(config)


def _recompute(config: PretrainConfig) -> Iterator[str]:
    training = config.training
    granularity, layers = training.recompute_granularity, training.recompute_num_layers
    given = {"--recompute-method": training.recompute_method, "--recompute-num-layers": layers}
    if granularity == "full":
        missing = [flag for flag, value in given.items() if value is None]
        if missing:
            yield f"--recompute-granularity full requires {' and '.join(missing)}, for example uniform and 1"
        share = chunk_layers(config)
        if layers is not None and layers > share > 0:
            yield f"--recompute-num-layers {layers} exceeds the {share} layers of a model chunk: use at most {share}"
        return
    for flag, value in given.items():
        if value is not None:
            yield f"{flag} {value} requires --recompute-granularity full: add it, or remove {flag}"


def _offload(config: PretrainConfig) -> Iterator[str]:
    layers, share = config.training.cpu_offloading_num_layers, chunk_layers(config)
    if layers > share > 0:
        yield f"--cpu-offloading-num-layers {layers} exceeds the {share} layers of a model chunk: use at most {share}"
    if layers and config.training.recompute_granularity == "full":
        yield (
            f"--cpu-offloading-num-layers {layers} has nothing to offload with --recompute-granularity full, which "
            "stores no activations: use --recompute-granularity selective, or remove one of them"
        )
