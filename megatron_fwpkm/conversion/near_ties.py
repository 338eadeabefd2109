"""Where float32 cannot decide which slots a token reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hf import FwPKMForCausalLM
from ..hf.memory import IDW_EPSILON, MemorySettings, MemoryStream, Reading
from ..hf.memory_block import FastWeightProductKeyMemory

ROUNDING = 8 * torch.finfo(torch.float32).eps
"""How far two float32 computations of one distance may be apart, relative to (|query| + |sub-key|)^2."""


class _TieFinder(MemoryStream):
    """A stream that looks at every choice it makes; it starts with its text."""

    def __init__(self, sub_keys: Tensor, values: Tensor, settings: MemorySettings) -> None:
        super().__init__(sub_keys, values, settings)
        self.reads = 0
        self.first: int | None = None
        """The first token of the text whose choice is a near tie."""

    def read(self, queries: Tensor) -> Reading:
        """Read, and look for near ties. Reads follow each other at distances of one chunk."""
        if self.first is None:
            found = near_ties(queries, self.sub_keys, self.settings).any(0).nonzero()
            if len(found):
                self.first = self.reads * self.settings.chunk_size + int(found[0])
        self.reads += 1
        return super().read(queries)


def near_ties(queries: Tensor, sub_keys: Tensor, settings: MemorySettings) -> Tensor:
    """Which tokens [B, T] would choose other sub-keys or slots if distances were off by a rounding error of float32.

    Args:
        queries: [B, T, H, key_dim], float64.
        sub_keys: [H, 2, n, key_dim/2], float64.
        settings: the memory's numbers.
    """
    halves = queries.unflatten(-1, (2, -1))
    products = torch.einsum("bthpd,hpnd->bthpn", halves, sub_keys)
    query_norms, key_norms = halves.norm(dim=-1, keepdim=True), sub_keys.norm(dim=-1).amax(-1)
    if settings.score == "dot_product":
        costs, error = -products, ROUNDING * query_norms * key_norms.unsqueeze(-1)
    else:
        costs = halves.square().sum(-1, keepdim=True) + sub_keys.square().sum(-1) - 2 * products
        error = ROUNDING * (query_norms + key_norms.unsqueeze(-1)).square()
    topk = settings.topk
    nearest = costs.topk(min(topk + 1, costs.shape[-1]), dim=-1, largest=False).values
    tied = (nearest[..., topk:] - nearest[..., topk - 1 : topk] < error).any(-1).any(-1)
    if settings.score == "dot_product":
        scores, doubt = -nearest[..., :topk], error
    else:
        scores, doubt = -torch.log(IDW_EPSILON + nearest[..., :topk]), error / (IDW_EPSILON + nearest[..., :1])
    sums = (scores[..., 0, :, None] + scores[..., 1, None, :]).flatten(-2)
    best = sums.topk(min(topk + 1, sums.shape[-1]), dim=-1).values
    tied |= (best[..., topk - 1 : topk] - best[..., topk:] < doubt.sum(-2)).any(-1)
    return tied.any(-1)


@torch.no_grad()
def first_near_tie(model: FwPKMForCausalLM, ids: Tensor) -> int:
    """Tokens of ``ids`` [1, T] before the first that a memory of ``model`` (float64) reads by a near tie; T if none."""
    finders = []
    memories = [module for module in model.modules() if isinstance(module, FastWeightProductKeyMemory)]
    for memory in memories:
        finder = _TieFinder(memory.sub_keys, memory.values, memory.settings)
        finders.append(finder)
        memory.new_stream = lambda finder=finder: finder  # type: ignore[method-assign, misc]
    try:
        model(ids, use_cache=False)
    finally:
        for memory in memories:
            del memory.new_stream
    return min([ids.shape[1], *(finder.first for finder in finders if finder.first is not None)])
