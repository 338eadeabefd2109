"""What a memory sends: number and bytes of its collectives per micro-batch, as docs/scaling.md says; none per chunk."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.distributed import run_distributed
from tests.layers.megatron import initialize, tiny

BATCH, LENGTH, HIDDEN = 2, 48, 32
_COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single")
Sent = Counter[str]
"""``name`` -> calls, ``name elements`` -> elements of the larger of input and output, float32 each."""


@contextmanager
def _counted() -> Any:
    sent: Sent = Counter()

    def wrap(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            sent[name] += 1
            sent[f"{name} elements"] += max(x.numel() for x in args[:2] if isinstance(x, torch.Tensor))
            return original(*args, **kwargs)

        return call

    import megatron.core.tensor_parallel.mappings as mappings

    dist = torch.distributed
    patches = [patch.object(dist, name, wrap(name, getattr(dist, name))) for name in _COLLECTIVES]
    for name, meaning in (("dist_all_gather_func", _COLLECTIVES[1]), ("dist_reduce_scatter_func", _COLLECTIVES[2])):
        patches.append(patch.object(mappings, name, wrap(meaning, getattr(mappings, name))))
    for one in patches:
        one.start()
    try:
        yield sent
    finally:
        for one in patches:
            one.stop()


def _count(rank: int, world_size: int, layouts: list[tuple[int, bool, int]]) -> list[tuple[Sent, Sent]]:
    """Forward and backward of one memory for every (context-parallel size, sequence parallel, chunk size)."""
    from megatron.core import parallel_state

    from megatron_fwpkm.layers.fast_weight_memory import FastWeightProductKeyMemory
    from megatron_fwpkm.models.transformer_config import transformer_config

    found = []
    for context, sequence, chunk in layouts:
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        initialize(world_size // context, context)
        config = transformer_config(tiny(sequence_parallel=sequence, chunk_size=chunk))
        memory = FastWeightProductKeyMemory(config, 1)
        share = context * (world_size // context if sequence else 1)
        hidden = torch.randn(LENGTH // share, BATCH, HIDDEN, requires_grad=True)
        with _counted() as forward:
            out = memory(hidden)
        with _counted() as backward:
            out.square().mean().backward()
        found.append((forward, backward))
    return found


def _expected(context: int, sequence: bool, world_size: int) -> tuple[Sent, Sent]:
    """The formulas of docs/scaling.md."""
    tensor = world_size // context
    everyone = BATCH * LENGTH
    mine = everyone // context
    reads, width, queries = 4, 16, 16  # heads * topk, value dimension, heads * key dimension
    written = BATCH * (LENGTH - LENGTH // 16)
    forward: Sent = Counter()
    backward: Sent = Counter()

    def add(sent: Sent, name: str, elements: int) -> None:
        sent[name] += 1
        sent[f"{name} elements"] += elements

    add(forward, "all_reduce", written + 1)  # squared errors for the log, and the number of columns
    add(backward, "all_reduce", everyone * reads)  # of slot weights
    add(backward, "all_reduce", everyone)  # of gates as weights of writes
    if tensor > 1:
        for sent in (forward, backward):
            add(sent, "all_reduce", 2 * mine)  # z-score of values
            add(sent, "all_reduce", mine)  # norm of the output
        add(backward, "all_reduce", mine)  # of gates as weights of the mixture
        add(backward, "all_reduce", mine * HIDDEN)  # of the input of the values
        if sequence:
            add(forward, "all_gather_into_tensor", mine * HIDDEN)
            add(forward, "reduce_scatter_tensor", mine * HIDDEN)
            add(backward, "all_gather_into_tensor", mine * HIDDEN)
        else:
            add(forward, "all_reduce", mine * HIDDEN)
    if context > 1:
        add(forward, "all_gather_into_tensor", everyone * queries)
        add(forward, "all_gather_into_tensor", everyone)  # gates
        for sent in (forward, backward):
            for _ in ("values", "reads"):
                add(sent, "all_to_all_single", mine * width // tensor)
    return forward, backward


_LAYOUTS = [(1, False, 16), (1, True, 16), (2, False, 16)]
_MORE_CHUNKS = [(1, True, 48), (2, False, 48)]


@pytest.fixture(scope="module")
def counted() -> dict[tuple[int, bool, int], tuple[Sent, Sent]]:
    """What two ranks send."""
    by_rank = run_distributed(_count, 2, _LAYOUTS + _MORE_CHUNKS, timeout=100)
    assert by_rank[0] == by_rank[1]
    return dict(zip(_LAYOUTS + _MORE_CHUNKS, by_rank[0], strict=True))


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_number_and_size_per_micro_batch(counted: Any, layout: tuple[int, bool, int]) -> None:
    context, sequence, _ = layout
    assert counted[layout] == _expected(context, sequence, 2)


@pytest.mark.parametrize("layout", _MORE_CHUNKS)
def test_none_per_chunk(counted: Any, layout: tuple[int, bool, int]) -> None:
    """One chunk or three: the same calls; of the reported errors one per chunk is missing, its last token's."""
    for many, one in zip(counted[*layout[:2], 16], counted[layout], strict=True):
        assert {name: many[name] for name in _COLLECTIVES} == {name: one[name] for name in _COLLECTIVES}


@pytest.mark.slow
def test_tensor_and_context_parallel_together() -> None:
    layouts = [(2, False, 16), (2, True, 16)]
    for found in run_distributed(_count, 4, layouts, timeout=100):
        assert found == [_expected(context, sequence, 4) for context, sequence, _ in layouts]
