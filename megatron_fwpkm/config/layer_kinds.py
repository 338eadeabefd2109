"""What the layers of a model are made of: [memory] + token mixer + MLP, each part of a kind.

What is asked of a layer before anything runs (parameters, bytes, what divides over ranks, how far it sees) is looked up
in `LAYER_KINDS` by the kinds of its parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from .kind_rows.fa_kind import FULL_ATTENTION
from .kind_rows.fwmlp_kind import FWMLP
from .kind_rows.fwpkm_kind import FWPKM
from .kind_rows.gdn_kind import GATED_DELTA_NET
from .kind_rows.pkm_kind import PKM
from .kind_rows.swa_kind import SLIDING_ATTENTION
from .kind_rows.swiglu_kind import SWIGLU
from .layer_kind import LAYER_KINDS, LayerKind, register_layer_kind
from .layer_pattern import layer_mixers
from .pretrain import PretrainConfig

for _kind in (FULL_ATTENTION, SLIDING_ATTENTION, GATED_DELTA_NET, SWIGLU, PKM, FWPKM, FWMLP):
    register_layer_kind(_kind)


class LayerParts(NamedTuple):
    """Kinds of the parts of one layer, by name."""

    memory: str | None
    mixer: str
    mlp: str

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds that are there, in the order in which text passes through them."""
        return tuple(name for name in self if name is not None)


def layer_plan(config: PretrainConfig) -> tuple[LayerParts, ...]:
    """What every layer of the model is made of; --layer-pattern must be valid."""
    return _plan(layer_mixers(config.model), _memories(config), frozenset(config.pkm.layer_numbers))


def _memories(config: PretrainConfig) -> tuple[tuple[int, str], ...]:
    """The kind of memory of every layer that has one; a layer that two kinds name keeps the first."""
    kinds = ((kind.name, kind.fast_weights) for kind in LAYER_KINDS.values())
    return tuple(
        (number, name) for name, fast in kinds if fast is not None for number in fast.options(config).layer_numbers
    )


@lru_cache(maxsize=8)
def _plan(
    mixers: tuple[str, ...], memories: tuple[tuple[int, str], ...], with_static_memory: frozenset[int]
) -> tuple[LayerParts, ...]:
    memory = dict(reversed(memories))
    return tuple(
        LayerParts(memory.get(number), mixer, "pkm" if number in with_static_memory else "swiglu")
        for number, mixer in enumerate(mixers, 1)
    )


def kinds_in_use(config: PretrainConfig) -> tuple[LayerKind, ...]:
    """The kinds that the model has: token mixers, MLPs, memories, each in the order of their first layers."""
    plan = list(dict.fromkeys(layer_plan(config)))
    by_role = ([parts.mixer for parts in plan], [parts.mlp for parts in plan], [parts.memory for parts in plan])
    return tuple(LAYER_KINDS[name] for names in by_role for name in dict.fromkeys(names) if name is not None)


def layers_of(config: PretrainConfig, kind: LayerKind) -> tuple[int, ...]:
    """Numbers (from 1) of the layers that have a part of this kind."""
    return tuple(number for number, parts in enumerate(layer_plan(config), 1) if kind.name in parts)


def count_parts(config: PretrainConfig, layer_numbers: Iterable[int]) -> Counter[LayerParts]:
    """How many of some layers (numbers from 1) are made alike."""
    plan = layer_plan(config)
    return Counter(plan[number - 1] for number in layer_numbers)
