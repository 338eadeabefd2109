"""What a memory sends: number and size of its collectives per micro-batch and per chunk, as docs/scaling.md says."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.layers.megatron import initialize, tiny
from tests.spawned_ranks import run_distributed

BATCH, LENGTH, HIDDEN = 2, 48, 32
_COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single")
Sent = Counter[str]
"""`name` -> calls, `name elements` -> elements of the larger of input and output, 4 bytes each."""


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


Layout = tuple[int, bool, int, float]
"""Context-parallel size, sequence parallel, chunk size, weight of the addressing loss: 0 keeps the sub-keys still."""


def _count(rank: int, world_size: int, layouts: list[Layout]) -> list[tuple[Sent, Sent]]:
    """Forward and backward of one memory for every layout."""
    from megatron.core import parallel_state

    from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
    from megatron_fwpkm.models.transformer_config import transformer_config

    found = []
    for context, sequence, chunk, weight in layouts:
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        initialize(world_size // context, context)
        config = transformer_config(tiny(sequence_parallel=sequence, chunk_size=chunk, addressing_weight=weight))
        memory = FastWeightMemoryLayer(config, 1)
        share = context * (world_size // context if sequence else 1)
        hidden = torch.randn(LENGTH // share, BATCH, HIDDEN, requires_grad=True)
        with _counted() as forward:
            out = memory(hidden)
        with _counted() as backward:
            out.square().mean().backward()
        found.append((forward, backward))
    return found


def _expected(layout: Layout, world_size: int) -> tuple[Sent, Sent]:
    """The formulas of docs/scaling.md."""
    context, sequence, chunk, weight = layout
    tensor = world_size // context
    everyone = BATCH * LENGTH
    mine = everyone // context
    reads, width, queries = 4, 16, 16  # heads * topk, value dimension, heads * key dimension
    halves = 2 * reads
    chunks = LENGTH // chunk
    written = BATCH * (LENGTH - chunks)
    forward: Sent = Counter()
    backward: Sent = Counter()

    def add(sent: Sent, name: str, elements: int, times: int = 1) -> None:
        sent[name] += times
        sent[f"{name} elements"] += elements

    # Costs and indices of what every rank proposes: of its num_subkeys / ranks = 4 or 2 rows at most topk = 4.
    proposed = 2 * everyone * 2 * min(4, 8 // world_size) * world_size
    if weight:
        add(forward, "all_gather_into_tensor", proposed, chunks)
        if chunks > 1:  # of pulls, which do not matter in the last chunk
            add(backward, "all_reduce", BATCH * (LENGTH - chunk) * halves, chunks - 1)
    else:
        add(forward, "all_gather_into_tensor", proposed)
    add(backward, "all_reduce", everyone * queries)  # of queries
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


_LAYOUTS = [(1, False, 16, 1.0), (1, True, 48, 1.0), (2, False, 16, 1.0), (1, True, 16, 0.0), (2, False, 16, 0.0)]


@pytest.fixture(scope="module")
def counted() -> dict[Layout, tuple[Sent, Sent]]:
    """What two ranks send."""
    by_rank = run_distributed(_count, 2, _LAYOUTS, timeout=100)
    assert by_rank[0] == by_rank[1]
    return dict(zip(_LAYOUTS, by_rank[0], strict=True))


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_number_and_size_per_micro_batch(counted: Any, layout: Layout) -> None:
    assert counted[layout] == _expected(layout, 2)


@pytest.mark.slow
def test_tensor_and_context_parallel_together() -> None:
    layouts = [(2, False, 16, 1.0), (2, True, 16, 0.0)]
    for found in run_distributed(_count, 4, layouts, timeout=100):
        assert found == [_expected(layout, 4) for layout in layouts]
