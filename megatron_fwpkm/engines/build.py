"""Which engine trains a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


ENGINES: dict[str, EngineBuilder] = {"megatron": _megatron}
"""Engines by name."""

build_engine = ENGINES["megatron"]
"""The engine of a run."""
