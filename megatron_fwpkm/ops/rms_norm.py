"""RMS normalisation in float32, in two halves: norms that share one input differ in their weights only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_normalize(x: Tensor, eps: float) -> Tensor:
    """Return `x * rsqrt(mean(x^2) + eps)` over the last dimension, in float32 (float64 for float64)."""
    x = x if x.dtype == torch.float64 else x.float()
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def scale_normalized(normalized: Tensor, weight: Tensor) -> Tensor:
    """Multiply what `rms_normalize` returned by `1 + weight`: a weight is the distance from 1."""
    return normalized * (1 + weight.to(normalized.dtype))
