"""Another dtype, forward and backward."""

from __future__ import annotations

import torch

from megatron_fwpkm.ops.dtype_change import to_dtype


def test_the_gradient_is_contiguous_and_that_of_torch() -> None:
    x = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    made, direction = to_dtype(x, torch.float32), torch.randn(3, 4)
    assert made.dtype == torch.float32 and torch.equal(made.bfloat16(), x)
    (gradient,) = torch.autograd.grad(made, x, direction.t())
    assert gradient.is_contiguous() and torch.equal(gradient, direction.t().bfloat16())


def test_the_same_dtype_is_the_same_tensor() -> None:
    x = torch.randn(2)
    assert to_dtype(x, torch.float32) is x
