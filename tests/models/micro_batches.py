"""Trains a small model for two steps of two micro-batches, in the order of a pipeline, and tells what was kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from megatron_fwpkm.config import TrainingConfig
from megatron_fwpkm.models.builder import build_model, memory_layers
from tests.layers.megatron import VOCABULARY, batch, initialize, tiny

MEMORIES: dict[str, dict[str, Any]] = {
    # Memories before the first and the last layer; with dropout, which the second run must repeat.
    "carried": {"layer_numbers": (1, 4), "model": {"attention_dropout": 0.2, "hidden_dropout": 0.1}},
    "static memories": {"layer_numbers": (4,), "pkm": {"layer_numbers": (1, 4)}},
    "document": {"layer_numbers": (2,), "reset": "document", "boundary": "carry"},
    "a memory per sequence": {"layer_numbers": (2,), "reset": "step", "owner": "sequence"},
    "documents apart": {"layer_numbers": (2,), "reset": "document", "data": {"reset_attention_mask": True}},
}


def train(memory: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """Two steps of two micro-batches, forward, forward, backward, backward as in a pipeline."""
    initialize()
    model_options = {"num_layers": 4, "layer_pattern": "fa", **memory.get("model", {})}
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
