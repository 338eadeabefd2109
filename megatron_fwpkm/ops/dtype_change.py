"""Another dtype in one pass, also for a gradient that comes in another order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ToDtype(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers in `dtype`."""
        ctx.dtype = x.dtype
        return x.to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient in the dtype of the input, row after row."""
        return gradients[0].to(ctx.dtype, memory_format=torch.contiguous_format), None


def to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)` whose gradient is contiguous: torch would convert it in its own order, and copy it once more."""
    return x if x.dtype == dtype else _ToDtype.apply(x, dtype)
