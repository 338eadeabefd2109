"""Queries, sub-keys and what is known about their addressing."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fwpkm.ops.product_key.selection import KeptSubKeys, exact_costs
from tests.ops.triton.harness import DEVICE

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers on the device under test."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def draw_integers(seed: int, low: int, high: int, *shape: int) -> Tensor:
    """Whole numbers in [low, high], as float64, whose arithmetic is exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(DEVICE, torch.float64)


def rank_all(queries: Tensor, sub_keys: Tensor, topk: int, score: str) -> KeptSubKeys:
    """The topk best of all sub-keys in float64 by a stable sort: the oracle of the selection."""
    costs = exact_costs(queries.double(), sub_keys.double().unsqueeze(1), score)
    costs, order = costs.sort(dim=-1, stable=True)
    return KeptSubKeys(order[..., :topk], costs[..., :topk])
