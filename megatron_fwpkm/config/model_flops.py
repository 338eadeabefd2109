"""Floating-point operations that a model needs for a token, before anything runs. Free of torch.

The convention is that of model FLOPs utilisation (MFU). A multiplication with an addition is two operations. A step is
three times the forward pass, for the backward pass costs twice as much. Attention costs what the tokens within its
causal window cost, on average over a sequence. What a memory reads and writes belongs to the forward pass. Norms,
activations, softmax and the choice of slots do not count, nor does what the backward pass computes again.
"""

from __future__ import annotations

from .derived import embedding_rows
from .layer_kind import LAYER_KINDS, LayerKind
from .layer_kinds import layer_plan
from .pretrain import PretrainConfig

PASSES = 3
"""Of a step, in forward passes."""


def kind_flops(config: PretrainConfig, kind: LayerKind, layer_number: int) -> float:
    """Operations of a token in the forward pass through one part of a layer."""
    return 2.0 * kind.parameters(config).total if kind.flops is None else kind.flops(config, layer_number)


def forward_flops_by_part(config: PretrainConfig, vocab_size: int) -> dict[str, float]:
    """Operations of a token in the forward pass, by part; `vocab_size` is the tokenizer's, padding is added here."""
    parts: dict[str, float] = {}
    for number, layer in enumerate(layer_plan(config), 1):
        for kind in (LAYER_KINDS[name] for name in layer.names):
            parts[kind.label] = parts.get(kind.label, 0.0) + kind_flops(config, kind, number)
    parts["output"] = 2.0 * embedding_rows(config, vocab_size) * config.model.hidden_size
    return parts


def training_flops(config: PretrainConfig, vocab_size: int) -> float:
    """Operations of a token in a step, forward and backward."""
    return PASSES * sum(forward_flops_by_part(config, vocab_size).values())
