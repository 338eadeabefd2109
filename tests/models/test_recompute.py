"""Recompute changes what is kept for backward and nothing else: bit for bit the same losses, gradients and tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import TrainingConfig
from megatron_fwpkm.layers.fast_weight_memory import FastWeightProductKeyMemory
from megatron_fwpkm.models.builder import build_model, memory_layers
from megatron_fwpkm.models.recompute import Unit, recompute_units
from tests.layers.megatron import VOCABULARY, batch, initialize, tiny

_FULL = {"recompute_granularity": "full"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "uniform 1": {**_FULL, "recompute_method": "uniform", "recompute_num_layers": 1},
    "uniform 2": {**_FULL, "recompute_method": "uniform", "recompute_num_layers": 2},
    "block 1": {**_FULL, "recompute_method": "block", "recompute_num_layers": 1},
    "core_attn": {"recompute_granularity": "selective"},
    "core_attn, mlp": {"recompute_granularity": "selective", "recompute_modules": ("core_attn", "mlp")},
}
_MEMORIES: dict[str, dict[str, Any]] = {
    # Memories before the first and the last layer; with dropout, which the second run must repeat.
    "carried": {"layer_numbers": (1, 4), "model": {"attention_dropout": 0.2, "hidden_dropout": 0.1}},
    "document": {"layer_numbers": (2,), "reset": "document", "boundary": "carry"},
    "documents apart": {"layer_numbers": (2,), "reset": "document", "data": {"reset_attention_mask": True}},
}


def _train(memory: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """Two steps of two micro-batches, forward, forward, backward, backward as in a pipeline."""
    initialize()
    model_options = {"num_layers": 4, "window_size": (), **memory.get("model", {})}
    config = replace(tiny(**{**memory, "model": model_options}), training=TrainingConfig(**setting))
    model = build_model(config, VOCABULARY)
    model.train()
    torch.manual_seed(11)
    losses, kept, calls = [], 0, 0

    def count_bytes(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    def count_call(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for layer in memory_layers(model):
        layer.register_forward_hook(count_call)
    for step in range(2):
        micro_losses = []
        with torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
            for micro in range(2):
                tokens, positions, labels = batch(seed=2 * step + micro)
                starts = torch.zeros(tokens.shape, dtype=torch.bool)
                starts[:, 20 + 4 * micro] = True  # each micro-batch its own, which the second run must see again
                model.set_document_starts(starts)
                documents = starts if config.data.reset_attention_mask else None
                micro_losses.append(model(tokens, positions, documents, labels=labels).mean())
        for loss in micro_losses:
            loss.backward()
        losses += [loss.item() for loss in micro_losses]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    memories = memory_layers(model)
    tensors = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    for layer in memories:
        tensors |= {f"{name} {layer.layer_number}": getattr(layer, name) for name in ("sub_keys", "values")}
    return {"losses": losses, "tensors": tensors, "kept": kept, "calls": calls / len(memories)}


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    """What training without recompute gives."""
    return {name: _train(memory, {}) for name, memory in _MEMORIES.items()}


@pytest.mark.parametrize("memory", _MEMORIES)
@pytest.mark.parametrize("setting", _SETTINGS)
def test_recompute_is_exact_and_writes_once(plain: Any, memory: str, setting: str) -> None:
    expected, recomputed = plain[memory], _train(_MEMORIES[memory], _SETTINGS[setting])
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
    assert len(runs) == 1 and isinstance(model.decoder.layers[1].memory, FastWeightProductKeyMemory)


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
