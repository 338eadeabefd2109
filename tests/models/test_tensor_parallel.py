"""A model on several tensor-parallel ranks computes what it computes on one: losses, gradients, fast weights."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest

from tests.models.layouts import assert_same_training, train, train_all
from tests.models.two_ranks import QUICK_TENSOR, TENSOR, TwoRanks, tensor_case
from tests.spawned_ranks import run_distributed

pytestmark = pytest.mark.layouts

_SLOW = [case for case in product(TENSOR, (False, True)) if case not in QUICK_TENSOR]


@cache
def serial(name: str) -> dict[str, Any]:
    """What one process computes."""
    return train(0, 1, TENSOR[name])


@cache
def slow_ones() -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """What two ranks compute, by rank."""
    by_rank = run_distributed(train_all, 2, [tensor_case(*case) for case in _SLOW], timeout=100)
    return dict(zip(_SLOW, (list(ranks) for ranks in zip(*by_rank, strict=True)), strict=True))


@pytest.mark.parametrize(
    ("name", "sequence_parallel"), [*QUICK_TENSOR, *(pytest.param(*case, marks=pytest.mark.slow) for case in _SLOW)]
)
def test_two_ranks_equal_one(two_ranks: TwoRanks, name: str, sequence_parallel: bool) -> None:
    case = name, sequence_parallel
    ranks = two_ranks().tensor[case] if case in QUICK_TENSOR else slow_ones()[case]
    assert_same_training(ranks, serial(name))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ten_steps(ranks: int) -> None:
    options = {"model": {"num_query_groups": 4}, "num_heads": 2}
    by_rank = run_distributed(train_all, ranks, [(options, 10, 1)], timeout=200)
    assert_same_training([results[0] for results in by_rank], train(0, 1, options, steps=10))


@pytest.mark.slow
@pytest.mark.parametrize(("context_parallel", "sequence_parallel"), [(1, False), (1, True), (2, False)])
def test_two_ranks_in_kernels(context_parallel: int, sequence_parallel: bool) -> None:
    """The memory and the block around it run in Triton's interpreter, on one rank and on two."""
    options = {"implementation": "triton", "sequence_parallel": sequence_parallel}
    by_rank = run_distributed(train_all, 2, [(options, 1, context_parallel)], timeout=300)
    expected = train(0, 1, {"implementation": "triton"}, steps=1)
    assert_same_training([results[0] for results in by_rank], expected, context_parallel)
    torch_alone = train(0, 1, {}, steps=1)
    assert expected["losses"] == pytest.approx(torch_alone["losses"], rel=1e-12)
