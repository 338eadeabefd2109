"""The memories of a model, of whatever kinds: their layers, options and fast weights, from the table of kinds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .layer_kind import LAYER_KINDS, FastWeights, LayerKind, Role
from .layer_kinds import kinds_in_use, layer_plan
from .pretrain import PretrainConfig


class MemoryKind(NamedTuple):
    """A kind of memory that the model has."""

    kind: LayerKind
    fast: FastWeights
    options: Any
    """Its group in `config`, with `chunk_size`, `lookahead`, `inner_lr`, `boundary` and `reset`."""


def memory_kinds(config: PretrainConfig) -> tuple[MemoryKind, ...]:
    """The kinds of memory in use, in the order of their first layers."""
    kinds = [kind for kind in kinds_in_use(config) if kind.role is Role.MEMORY]
    return tuple(MemoryKind(kind, kind.fast_weights, kind.fast_weights.options(config)) for kind in kinds
                 if kind.fast_weights is not None)  # fmt: skip


def memory_numbers(config: PretrainConfig) -> tuple[int, ...]:
    """Numbers (from 1) of the layers with a memory, ascending."""
    return tuple(number for number, parts in enumerate(layer_plan(config), 1) if parts.memory is not None)


def memories_of(config: PretrainConfig, layer_numbers: Iterable[int]) -> list[FastWeights]:
    """What is known of the memory of each of these layers that has one."""
    plan, chosen = layer_plan(config), frozenset(layer_numbers)
    names = [plan[number - 1].memory for number in memory_numbers(config) if number in chosen]
    found = [LAYER_KINDS[name].fast_weights for name in names if name is not None]
    return [fast for fast in found if fast is not None]


def fast_weight_bytes(config: PretrainConfig, layer_numbers: Iterable[int], ranks: int = 1) -> int:
    """Bytes of the fast weights of these layers on each of `ranks` that share every memory."""
    return sum(fast.bytes(config, ranks) for fast in memories_of(config, layer_numbers))


def is_reset(config: PretrainConfig, when: str) -> bool:
    """Whether any memory of the model is reset `when`: never, step or document."""
    return any(memory.options.reset == when for memory in memory_kinds(config))
