"""Where float32 cannot decide which slots a token reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hf import FwPKMForCausalLM
from ..hf.memory_block import FastWeightProductKeyMemory
from ..ops import MemoryOptions, fast_weight_memory
from ..ops.product_key.epsilons import IDW_EPSILON

ROUNDING = 8 * torch.finfo(torch.float32).eps
"""How far two float32 computations of one distance may be apart, relative to (|query| + |sub-key|)^2."""


def near_ties(queries: Tensor, sub_keys: Tensor, options: MemoryOptions) -> Tensor:
    """Which tokens [B, T] would choose other sub-keys or slots if distances were off by a rounding error of float32.

    Args:
        queries: [B, T, H, key_dim], float64.
        sub_keys: [H, 2, n, key_dim/2], float64.
        options: the memory's numbers.
    """
    halves = queries.unflatten(-1, (2, -1))
    products = torch.einsum("bthpd,hpnd->bthpn", halves, sub_keys)
    query_norms, key_norms = halves.norm(dim=-1, keepdim=True), sub_keys.norm(dim=-1).amax(-1)
    if options.score == "dot_product":
        costs, error = -products, ROUNDING * query_norms * key_norms.unsqueeze(-1)
    else:
        costs = halves.square().sum(-1, keepdim=True) + sub_keys.square().sum(-1) - 2 * products
        error = ROUNDING * (query_norms + key_norms.unsqueeze(-1)).square()
    topk = options.topk
    nearest = costs.topk(min(topk + 1, costs.shape[-1]), dim=-1, largest=False).values
    tied = (nearest[..., topk:] - nearest[..., topk - 1 : topk] < error).any(-1).any(-1)
    if options.score == "dot_product":
        scores, doubt = -nearest[..., :topk], error
    else:
        scores, doubt = -torch.log(IDW_EPSILON + nearest[..., :topk]), error / (IDW_EPSILON + nearest[..., :1])
    sums = (scores[..., 0, :, None] + scores[..., 1, None, :]).flatten(-2)
    best = sums.topk(min(topk + 1, sums.shape[-1]), dim=-1).values
    tied |= (best[..., topk - 1 : topk] - best[..., topk:] < doubt.sum(-2)).any(-1)
    return tied.any(-1)


@torch.no_grad()
def first_near_tie(model: FwPKMForCausalLM, ids: Tensor) -> int:
    """Tokens of `ids` [1, T] before the first that a memory of `model` (float64) reads by a near tie; T if none."""
    found = [ids.shape[1]]

    def look(memory: FastWeightProductKeyMemory, inputs: tuple[Tensor, ...]) -> None:
        """Keep the first tied token of what enters a memory."""
        tied = _tied_tokens(memory, inputs[0]).nonzero()
        found.extend(tied[:1].flatten().tolist())

    memories = [module for module in model.modules() if isinstance(module, FastWeightProductKeyMemory)]
    hooks = [memory.register_forward_pre_hook(look) for memory in memories]
    try:
        model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return min(found)


def _tied_tokens(memory: FastWeightProductKeyMemory, hidden: Tensor) -> Tensor:
    """Which tokens [T] of a text `memory` reads by a near tie, from its first token on; `hidden` is [1, T, width]."""
    queries, targets, gates = memory.project(hidden)
    options, state, tied, start = memory.options, memory.initial(), [], 0
    # Tables stand still within a chunk; with tokens that wait for their targets the first write comes so much later.
    stop = options.chunk_size + (options.lookahead if options.boundary == "carry" else 0)
    while start < queries.shape[1]:
        part = slice(start, stop)
        tied.append(near_ties(queries[:, part], state.sub_keys, options).any(0))
        part_gates = None if gates is None else gates[:, part]
        state = fast_weight_memory(queries[:, part], targets[:, part], part_gates, state, options).state
        start, stop = stop, stop + options.chunk_size
    return torch.cat(tied)
