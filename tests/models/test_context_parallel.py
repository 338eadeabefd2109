"""A sequence spread over ranks is computed as on one: losses, gradients, fast weights; alone and with other layouts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from tests.models.layouts import assert_same_training, train, train_all
from tests.models.two_ranks import CONTEXT, QUICK_CONTEXT, TwoRanks
from tests.spawned_ranks import run_distributed

pytestmark = pytest.mark.layouts

_SLOW = [name for name in CONTEXT if name not in QUICK_CONTEXT]


@cache
def serial(name: str) -> dict[str, Any]:
    """What one process computes."""
    return train(0, 1, CONTEXT[name])


def _run(world_size: int, names: Sequence[str], steps: int = 2) -> dict[str, list[dict[str, Any]]]:
    by_rank = run_distributed(train_all, world_size, [(CONTEXT[name], steps, 2) for name in names], timeout=200)
    return dict(zip(names, (list(ranks) for ranks in zip(*by_rank, strict=True)), strict=True))


@cache
def slow_ones() -> dict[str, list[dict[str, Any]]]:
    """Context parallelism alone, on two ranks."""
    return _run(2, _SLOW)


@pytest.mark.parametrize("name", [*QUICK_CONTEXT, *(pytest.param(name, marks=pytest.mark.slow) for name in _SLOW)])
def test_two_ranks_equal_one(two_ranks: TwoRanks, name: str) -> None:
    ranks = two_ranks().context[name] if name in QUICK_CONTEXT else slow_ones()[name]
    assert_same_training(ranks, serial(name), context_parallel=2)


@pytest.mark.slow
def test_with_tensor_and_sequence_parallelism() -> None:
    names = ["carried", "static memories", "several heads, no gate, long window", "sequence parallel"]
    for name, ranks in _run(4, names).items():
        assert_same_training(ranks, serial(name), context_parallel=2)


@pytest.mark.slow
def test_ten_steps() -> None:
    for world_size in (2, 4):
        ranks = _run(world_size, ["carried"], steps=10)["carried"]
        assert_same_training(ranks, train(0, 1, CONTEXT["carried"], steps=10), context_parallel=2)
