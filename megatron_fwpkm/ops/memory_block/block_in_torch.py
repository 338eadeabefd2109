"""The steps of the block around a memory in torch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rms_norm import rms_normalize, scale_normalized
from ..sharding import ColumnSums
from .block_types import BlockInputs, NormWeights, StandardValues


def normalize_hidden(x: Tensor, weights: NormWeights, eps: float, dtype: torch.dtype) -> BlockInputs:
    """The three norms of the hidden state, and the gate.

    Args:
        x: [..., h].
        weights: of the norms and the gate.
        eps: added to the mean square.
        dtype: of the gates.

    Returns:
        What the projections read, in the dtype of `x`.
    """
    normalized = rms_normalize(x, eps)  # shared: the norms differ in their weights only
    queries = scale_normalized(normalized, weights.query).to(x.dtype)
    values = scale_normalized(normalized, weights.value).to(x.dtype)
    if weights.gate is None or weights.gate_row is None:
        return BlockInputs(x, queries, values, None)
    logits = F.linear(scale_normalized(normalized, weights.gate).to(x.dtype), weights.gate_row, weights.gate_bias)
    return BlockInputs(x, queries, values, logits.to(dtype).sigmoid())


def standardize_values(values: Tensor, dtype: torch.dtype, columns: ColumnSums) -> StandardValues:
    """z-score over all columns with the unbiased standard deviation plus 1e-6 (DESIGN section 2).

    Args:
        values: [..., this process's columns].
        dtype: of the result.
        columns: how the columns are spread; one sum of two numbers per token crosses processes.

    Returns:
        Twice the same tensor.
    """
    x = values.to(dtype)
    if columns.size == 1:
        std, mean = torch.std_mean(x, dim=-1, keepdim=True)
    else:
        n = columns.num_columns
        sums = columns.total(torch.stack([x.sum(-1), x.square().sum(-1)], dim=-1))
        mean = sums[..., :1] / n
        std = ((sums[..., 1:] - n * mean.square()) / (n - 1)).clamp(min=0).sqrt()
    standard = (x - mean) / (std + 1e-6)
    return StandardValues(standard, standard)


def mix_reads(
    reads: Tensor,
    values: Tensor,
    gates: Tensor | None,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype,
    columns: ColumnSums,
) -> Tensor:
    """RMS norm over all columns of `g * r + (1 - g) * v`, or of r + v without gates.

    Args:
        reads: [..., this process's columns], what the memory returned.
        values: the same, what reads are mixed with.
        gates: [..., 1], or None.
        weight: of the norm, [this process's columns], the distance from 1.
        eps: added to the mean square.
        dtype: of the result.
        columns: how the columns are spread; one sum of a number per token crosses processes.

    Returns:
        What the output is projected from.
    """
    mixed = reads + values if gates is None else torch.lerp(values, reads, gates)
    mean_square = columns.total(mixed.square().sum(-1, keepdim=True)) / columns.num_columns
    return scale_normalized(mixed * torch.rsqrt(mean_square + eps), weight).to(dtype)


def add_output(residual: Tensor, projected: Tensor, bias: Tensor) -> Tensor:
    """The end of the block: the hidden state plus the projected output [..., h] and its bias [h]."""
    return residual + projected + bias
