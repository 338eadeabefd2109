"""A sequence spread over ranks is computed as on one: losses, gradients, fast weights; alone and with other layouts."""

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
    "documents apart": {"reset": "document", "data": {"reset_attention_mask": True, "reset_position_ids": True}},
    "several heads, no gate, long window": {
        "gate": False,
        "num_heads": 2,
        "boundary": "carry",
        "model": {"layer_pattern": "swa:30,fa,swa:14", "attention_output_gate": True},
    },
    "sequence parallel": {"sequence_parallel": True},
    "fast MLPs": {
        "layer_numbers": (),
        "fwmlp": {"layer_numbers": (1, 3), "gate_writes": True, "reset": "document", "boundary": "carry"},
    },
    "recomputed": {"training": {"recompute_granularity": "selective"}},
}


@pytest.fixture(scope="module")
def serial() -> dict[str, dict[str, Any]]:
    """What one process computes."""
    return {name: train(0, 1, options) for name, options in _MEMORIES.items()}


def _run(world_size: int, names: list[str], steps: int = 2) -> dict[str, list[dict[str, Any]]]:
    by_rank = run_distributed(train_all, world_size, [(_MEMORIES[name], steps, 2) for name in names], timeout=200)
    return dict(zip(names, (list(ranks) for ranks in zip(*by_rank, strict=True)), strict=True))


@pytest.fixture(scope="module")
def two() -> dict[str, list[dict[str, Any]]]:
    """Context parallelism alone, on two ranks."""
    return _run(2, list(_MEMORIES))


@pytest.mark.parametrize("name", _MEMORIES)
def test_two_ranks_equal_one(serial: Any, two: Any, name: str) -> None:
    assert_same_training(two[name], serial[name], context_parallel=2)


@pytest.mark.slow
def test_with_tensor_and_sequence_parallelism(serial: Any) -> None:
    names = ["carried", "static memories", "several heads, no gate, long window", "sequence parallel"]
    for name, ranks in _run(4, names).items():
        assert_same_training(ranks, serial[name], context_parallel=2)


@pytest.mark.slow
def test_ten_steps() -> None:
    for world_size in (2, 4):
        ranks = _run(world_size, ["carried"], steps=10)["carried"]
        assert_same_training(ranks, train(0, 1, _MEMORIES["carried"], steps=10), context_parallel=2)
