"""Recompute changes what is kept for backward and nothing else: bit for bit the same losses, gradients and tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import TrainingConfig
from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
from megatron_fwpkm.models.builder import build_model
from megatron_fwpkm.models.recompute import Unit, recompute_units
from tests.layers.megatron import VOCABULARY, batch, tiny
from tests.models.micro_batches import MEMORIES, train
from tests.quick_cases import product_cases

_FULL = {"recompute_granularity": "full"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "uniform 1": {**_FULL, "recompute_method": "uniform", "recompute_num_layers": 1},
    "uniform 2": {**_FULL, "recompute_method": "uniform", "recompute_num_layers": 2},
    "block 1": {**_FULL, "recompute_method": "block", "recompute_num_layers": 1},
    "core_attn": {"recompute_granularity": "selective"},
    "core_attn, mlp": {"recompute_granularity": "selective", "recompute_modules": ("core_attn", "mlp")},
}


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    """What training without recompute gives."""
    return {name: train(memory, {}) for name, memory in MEMORIES.items()}


@pytest.mark.parametrize(
    ("setting", "memory"),
    product_cases(
        _SETTINGS,
        MEMORIES,
        quick=lambda setting, memory: list(_SETTINGS).index(setting) == list(MEMORIES).index(memory) % len(_SETTINGS),
    ),
)
def test_recompute_is_exact_and_writes_once(plain: Any, memory: str, setting: str) -> None:
    expected, recomputed = plain[memory], train(MEMORIES[memory], _SETTINGS[setting])
    assert recomputed["losses"] == expected["losses"]
    for name, tensor in expected["tensors"].items():
        assert torch.equal(recomputed["tensors"][name], tensor), name
    assert recomputed["calls"] == expected["calls"] == 4
    assert recomputed["kept"] < expected["kept"]


def test_evaluation_recomputes_nothing() -> None:
    config = replace(tiny(), training=TrainingConfig(**_SETTINGS["uniform 1"]))
    model = build_model(config, VOCABULARY).eval()
    tokens, positions, labels = batch()
    first_layer = model.decoder.layers[0]
    runs = []
    first_layer.self_attention.register_forward_hook(lambda *_: runs.append(1))
    model(tokens, positions, None, labels=labels).mean().backward()
    assert len(runs) == 1 and isinstance(model.decoder.layers[1].memory, FastWeightMemoryLayer)


@pytest.mark.parametrize(
    ("memories", "method", "num_layers", "units"),
    [
        ((0, 0, 0, 0, 0), "uniform", 2, [(0, 2, True), (2, 4, True), (4, 5, True)]),
        ((1, 0, 0, 1, 0), "uniform", 2, [(0, 2, True), (2, 3, True), (3, 4, True), (4, 5, True)]),
        ((0, 1, 0), "uniform", 3, [(0, 1, True), (1, 3, True)]),
        ((0, 1, 0), "block", 2, [(0, 1, True), (1, 2, True), (2, 3, False)]),
    ],
)
def test_units_end_at_memories(memories: tuple[int, ...], method: str, num_layers: int, units: list) -> None:
    found = recompute_units([bool(memory) for memory in memories], method, num_layers)
    assert found == [Unit(*unit) for unit in units]
