"""Which engine trains a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from ..config import PretrainConfig
from ..config.derived import embedding_rows
from ..distributed.startup import World
from .base import Engine, EngineBuilder


@contextmanager
def _megatron(config: PretrainConfig, world: World, vocab_size: int) -> Iterator[Engine]:
    # Imported where it is built: megatron.core takes seconds, and another engine may do without.
    from .megatron import MegatronEngine
    from .megatron_groups import model_parallel_groups

    with model_parallel_groups(config.parallel, config.training.seed, world):
        yield MegatronEngine(config, embedding_rows(config, vocab_size), world.device)


@contextmanager
def _deepspeed(config: PretrainConfig, world: World, vocab_size: int) -> Iterator[Engine]:
    from .deepspeed import DeepSpeedEngine
    from .megatron_groups import model_parallel_groups

    with model_parallel_groups(config.parallel, config.training.seed, world):
        yield DeepSpeedEngine(config, vocab_size, world.device)


ENGINES: dict[str, EngineBuilder] = {"megatron": _megatron, "deepspeed": _deepspeed}
"""Engines by name."""


def build_engine(config: PretrainConfig, world: World, vocab_size: int) -> AbstractContextManager[Engine]:
    """The engine that --engine names."""
    return ENGINES[config.engine.engine](config, world, vocab_size)


def check_installed(config: PretrainConfig, world: World) -> None:
    """See that the library of the engine is there, before anything is written.

    Raises ValueError that says how to install it.
    """
    if config.engine.engine == "deepspeed":
        from .deepspeed_library import import_deepspeed

        import_deepspeed(world.device)
