"""The block around a memory as its formulas say, for dense autograd: the oracle of its implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from .block_types import BlockInputs, NormWeights


def reference_inputs(x: Tensor, weights: NormWeights, eps: float) -> BlockInputs:
    """What is made of the hidden state [..., h], in its dtype."""
    n = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    gates = None
    if weights.gate is not None and weights.gate_row is not None and weights.gate_bias is not None:
        logits = (n * (1 + weights.gate) * weights.gate_row[0]).sum(-1, keepdim=True) + weights.gate_bias
        gates = 1 / (1 + torch.exp(-logits))
    return BlockInputs(x, n * (1 + weights.query), n * (1 + weights.value), gates)


def reference_standard(values: Tensor) -> Tensor:
    """z-scores of values [..., D]."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / ((centred.square().sum(-1, keepdim=True) / (values.shape[-1] - 1)).sqrt() + 1e-6)


def reference_mixture(reads: Tensor, values: Tensor, gates: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """The norm of the mixture of reads and values [..., D], with gates [..., 1] or None."""
    mixed = reads + values if gates is None else gates * reads + (1 - gates) * values
    return mixed / (mixed.square().mean(-1, keepdim=True) + eps).sqrt() * (1 + weight)
