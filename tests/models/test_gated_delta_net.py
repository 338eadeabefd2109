"""A model with gated delta nets computes in every layout what it computes serially, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import LinearAttentionConfig
from megatron_fwpkm.config.layer_kind import LAYER_KINDS
from megatron_fwpkm.models.builder import build_model
from tests.layers.megatron import VOCABULARY, initialize, tiny
from tests.models.layouts import assert_same_training, train, train_all
from tests.spawned_ranks import run_distributed

pytestmark = pytest.mark.layouts

MODEL: dict[str, Any] = {"num_layers": 3, "layer_pattern": "gdn*2,fa", "window_size": None}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"model": MODEL, "layer_numbers": (2,)},
    "sequence parallel": {"model": MODEL, "layer_numbers": (), "sequence_parallel": True},
    "documents apart": {
        "model": MODEL, "layer_numbers": (), "data": {"reset_attention_mask": True, "reset_position_ids": True},
    },
    "recomputed": {"model": MODEL, "layer_numbers": (), "training": {"recompute_granularity": "selective"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def serial() -> dict[str, dict[str, Any]]:
    """What one process computes."""
    return {name: train(0, 1, options) for name, options in CASES.items()}


def run(world_size: int, names: list[str], context: int = 1) -> dict[str, list[dict[str, Any]]]:
    by_rank = run_distributed(train_all, world_size, [(CASES[name], 2, context) for name in names], timeout=200)
    return dict(zip(names, (list(ranks) for ranks in zip(*by_rank, strict=True)), strict=True))


@pytest.fixture(scope="module")
def tensor() -> dict[str, list[dict[str, Any]]]:
    """Two tensor-parallel ranks."""
    return run(2, list(CASES))


@pytest.fixture(scope="module")
def context() -> dict[str, list[dict[str, Any]]]:
    """Two context-parallel ranks."""
    return run(2, ["plain", "documents apart"], context=2)


@pytest.mark.slow  # in every run: tests/training/test_kind_layouts.py
@pytest.mark.parametrize("name", CASES)
def test_two_tensor_parallel_ranks_equal_one(serial: Any, tensor: Any, name: str) -> None:
    assert_same_training(tensor[name], serial[name])


@pytest.mark.slow  # in every run: tests/models/test_context_parallel.py
@pytest.mark.parametrize("name", ["plain", "documents apart"])
def test_two_context_parallel_ranks_equal_one(serial: Any, context: Any, name: str) -> None:
    assert_same_training(context[name], serial[name], context_parallel=2)


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2])
def test_four_ranks_equal_one(serial: Any, context: int) -> None:
    names = ["plain", "sequence parallel", "documents apart"] if context == 2 else ["sequence parallel"]
    for name, ranks in run(4, names, context).items():
        assert_same_training(ranks, serial[name], context_parallel=context)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_of_what_is_kept_for_backward(recompute: bool) -> None:
    initialize()
    model = MODEL | {"num_layers": 1, "layer_pattern": "gdn", "hidden_size": 128, "seq_length": 512}
    config = replace(
        tiny(model=model, layer_numbers=(), training=CASES["recomputed"]["training"] if recompute else None),
        linear_attention=LinearAttentionConfig(key_head_dim=32, value_head_dim=64, num_key_heads=2, num_value_heads=4),
    )
    mixer = build_model(config, VOCABULARY).decoder.layers[0].self_attention
    weights = {parameter.untyped_storage().data_ptr() for parameter in mixer.parameters()}
    kept: dict[int, torch.Tensor] = {}  # that they live until the end keeps addresses apart

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mixer(torch.randn(512, 2, 128, requires_grad=True))
    sizes = {place: tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights}
    measured = sum(sizes.values()) / 1024 - 4 * 128  # the input is counted with the norm before it
    assert measured == pytest.approx(LAYER_KINDS["gdn"].activation_bytes(config).sharded, rel=0.1)
