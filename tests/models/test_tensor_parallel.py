"""A model on several tensor-parallel ranks computes what it computes on one: losses, gradients, fast weights."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models.layouts import assert_same_training, train, train_all
from tests.spawned_ranks import run_distributed

pytestmark = pytest.mark.layouts

_MEMORIES: dict[str, dict[str, Any]] = {
    "carried": {},
    "static memories": {"pkm": {"layer_numbers": (1, 3)}},
    "document": {"reset": "document"},
    "a memory per sequence": {
        "layer_numbers": (2,),
        "reset": "step",
        "owner": "sequence",
        "fwmlp": {"layer_numbers": (1, 3), "reset": "step", "owner": "sequence"},
    },
    "fast MLPs": {"layer_numbers": (2,), "fwmlp": {"layer_numbers": (1, 3), "gate_writes": True, "inner_lr": 0.5}},
    "several heads, no gate": {
        "gate": False, "num_heads": 2, "boundary": "carry", "model": {"attention_output_gate": True}
    },
}
_CASES = [(name, sequence_parallel) for name in _MEMORIES for sequence_parallel in (False, True)]


@pytest.fixture(scope="module")
def serial() -> dict[str, dict[str, Any]]:
    """What one process computes."""
    return {name: train(0, 1, options) for name, options in _MEMORIES.items()}


@pytest.fixture(scope="module")
def parallel() -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """What two ranks compute, by rank."""
    cases = [({**_MEMORIES[name], "sequence_parallel": sharded}, 2, 1) for name, sharded in _CASES]
    by_rank = run_distributed(train_all, 2, cases, timeout=100)
    return dict(zip(_CASES, (list(ranks) for ranks in zip(*by_rank, strict=True)), strict=True))


@pytest.mark.parametrize(("name", "sequence_parallel"), _CASES)
def test_two_ranks_equal_one(serial: Any, parallel: Any, name: str, sequence_parallel: bool) -> None:
    assert_same_training(parallel[name, sequence_parallel], serial[name])


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
