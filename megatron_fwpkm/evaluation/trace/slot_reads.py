"""The slots that tokens read while a model reads or generates, taken from outside of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...hf.cache import FwPKMCache
from ...hf.memory import PRODUCT_KEYS, MemoryFunctions
from ...ops.fast_weight_memory.plain import read_state


class SlotReads(NamedTuple):
    """What T tokens of one sequence read in one layer, with H heads and k slots per head."""

    slots: Tensor
    """int64 [T, H * k], on the CPU."""
    weights: Tensor
    """float32 [T, H * k], which add up to 1 for every token."""
    strengths: Tensor
    """float32 [T], the gate with which a token is written into its slots; 0 where nothing is written."""

    def cut(self, start: int, stop: int) -> SlotReads:
        """The tokens [start, stop)."""
        return SlotReads(*(field[start:stop] for field in self))


Collected = dict[int, list[SlotReads]]
"""By layer index from 0, the reads of every call."""


@contextmanager
def collect_reads(cache: FwPKMCache) -> Iterator[Collected]:
    """Collect what the calls with a cache of one sequence read from its product key memories, within the context.

    A token's slots are those of the moment in which it arrives. Memories of other kinds have no slots and are left out.

    Raises:
        ValueError: the cache has several sequences.
    """
    if cache.batch_size != 1:
        raise ValueError(f"slots are traced for one sequence at a time, but the cache has {cache.batch_size}")
    owners = {index: memories.owners[0] for index, memories in cache.memory.items()}
    traced = {index: owner for index, owner in owners.items() if owner.functions == PRODUCT_KEYS}
    found: Collected = {index: [] for index in traced}
    for index, owner in traced.items():
        owner.functions = _collecting(found[index])
    try:
        yield found
    finally:
        for owner in traced.values():
            owner.functions = PRODUCT_KEYS


def joined(found: Collected) -> dict[int, SlotReads]:
    """The reads of all calls in their order, by layer; layers that were not read are left out."""
    return {
        index: SlotReads(*(torch.cat(parts) for parts in zip(*calls, strict=True)))
        for index, calls in found.items()
        if calls
    }


def _collecting(calls: list[SlotReads]) -> MemoryFunctions:
    """Product key memories as they are, which also append to `calls` what is read."""

    def _read_and_write(queries: Tensor, targets: Tensor, gates: Tensor | None, *rest: Any, **keywords: Any) -> Any:
        output = PRODUCT_KEYS.read_and_write(queries, targets, gates, *rest, **keywords)
        strengths = torch.ones(queries.shape[1]) if gates is None else gates[0]
        calls.append(_reads(output.slot_indices[0], output.slot_weights[0], strengths))
        return output

    def _read_only(queries: Tensor, targets: Tensor, tables: Any, options: Any) -> Tensor:
        reading = read_state(queries, replace(tables, pending=None), options)
        calls.append(_reads(reading.slot_indices, reading.slot_weights, torch.zeros(queries.shape[1])))
        return PRODUCT_KEYS.read_only(queries, targets, tables, options)

    return MemoryFunctions(_read_and_write, PRODUCT_KEYS.write_pending, _read_only)


def _reads(slots: Tensor, weights: Tensor, strengths: Tensor) -> SlotReads:
    return SlotReads(
        slots.detach().flatten(1).cpu(), weights.detach().flatten(1).float().cpu(), strengths.detach().float().cpu()
    )
