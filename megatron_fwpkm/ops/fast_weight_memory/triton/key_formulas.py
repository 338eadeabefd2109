# mypy: disable-error-code="no-untyped-def"
"""What the kernels of the sub-keys compute for every token from its k numbers; names are those of the README."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def slope_of(mean, ENTROPY_EPSILON: tl.constexpr):
    """u: the derivative of mean * log(mean + epsilon)."""
    shifted = mean + ENTROPY_EPSILON
    return tl.log(shifted) + mean / shifted


@triton.jit
def density_of(cost, EPSILON: tl.constexpr, IDW: tl.constexpr):
    """rho = 1 / (epsilon + distance): minus the derivative of a score by its cost; 1 for dot products."""
    density = tl.full(cost.shape, 1, cost.dtype)
    if IDW:
        density = 1 / (cost + EPSILON)
    return density


@triton.jit
def kept_score_gradient(grad_slot, position, places):
    """Gradient of the kept scores: each is part of all slots that pair its sub-key."""
    same = position[:, None, :] == places[None, :, None]
    return tl.sum(tl.where(same, grad_slot[:, None, :], 0.0), 2)


@triton.jit
def second_derivative(weighted, share, mean, grad_slope, ENTROPY_EPSILON: tl.constexpr):
    """Gradient of y = P * (u - sum P u), times `weighted`, by the kept scores of every token."""
    slope = slope_of(mean, ENTROPY_EPSILON)
    balance = -tl.sum(weighted * share, 1)[:, None]
    shifted = mean + ENTROPY_EPSILON
    grad_share = weighted * (slope - tl.sum(share * slope, 1)[:, None]) + balance * slope
    grad_share += grad_slope * (1 + ENTROPY_EPSILON / shifted) / shifted
    return share * (grad_share - tl.sum(share * grad_share, 1)[:, None])
