"""Contents of a checkpoint without a run: a freshly built Megatron model with weights and tables that matter."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_fwpkm.checkpoint.reading import CheckpointContents
from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.models.builder import build_model, memory_layers
from megatron_fwpkm.ops import FastWeightState


def contents_of(
    config: PretrainConfig, vocab_size: int, padded: int, tokenizer: Path | None = None
) -> CheckpointContents:
    """Random weights under Megatron's names, and a written memory in every layer that has one."""
    model = build_model(config, padded)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15, generator=generator)
    slow = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    fast = {}
    for layer in memory_layers(model):
        state = layer.fast_weights()
        draw = [torch.randn(table.shape, generator=generator) for table in (state.sub_keys, state.values)]
        fast[layer.layer_number] = FastWeightState(state.sub_keys + 0.05 * draw[0], state.values + 0.5 * draw[1])
    return CheckpointContents(
        path=Path("checkpoint/iter_0000007"),
        iteration=7,
        config=config,
        vocab_size=vocab_size,
        padded_vocab_size=padded,
        slow=slow,
        fast=fast,
        tokenizer_path=tokenizer,
    )
