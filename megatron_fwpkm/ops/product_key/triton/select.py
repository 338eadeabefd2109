"""Product-key selection in Triton kernels: no host synchronisation, the same result as `selection.py` up to rounding.

Shapes: G = heads * 2 groups (one list of n sub-keys each), M tokens, k = topk, h = key_dim / 2.

cuBLAS proposes costs for all sub-keys, a kernel keeps the k best by exact costs and settles doubts and ties itself. The
result for a token does not depend on the tokens it is batched with, bit for bit.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ...kernel_forms import KernelForm
from ..epsilons import IDW_EPSILON
from ..selection import KeptSubKeys, SlotChoice
from .select_kernels import select_kernel, slots_kernel

_BLOCK_ELEMENTS = 1 << 25
"""Largest number of proposals that exist at once; longer inputs are done in blocks of tokens."""

_NUMBERS = 256
"""Numbers of all tokens of a program, 8 to a thread, unless one token has more."""

_ROUNDING = 8
"""Roundings a cost may be off by, twice as many as in `selection.py`: here a doubt costs next to nothing."""


def rows_of(queries: Tensor) -> tuple[Tensor, int, int]:
    """Queries [G, M, h] as rows of h numbers: the tensor, and how many rows lie between groups and between tokens.

    They are copied only if they do not lie in such rows, or do not begin at a multiple of 16 bytes: a kernel is
    compiled for the alignment it meets, and might add in another order for another.
    """
    half_dim = queries.shape[2]
    group_stride, token_stride, stride = queries.stride()
    if stride != 1 or group_stride % half_dim or token_stride % half_dim or queries.data_ptr() % 16:
        queries = queries.clone(memory_format=torch.contiguous_format)
        group_stride, token_stride, _ = queries.stride()
    return queries, group_stride // half_dim, token_stride // half_dim


def propose_costs(queries: Tensor, sub_keys: Tensor, key_squares: Tensor, score: str) -> Tensor:
    """Approximate costs [G, M, n] of all sub-keys, for `idw` without the square of the query, by a matrix product.

    Args:
        queries: [G, M, h].
        sub_keys: [G, n, h].
        key_squares: [G, n].
        score: `idw` or `dot_product`.
    """
    transposed = sub_keys.transpose(1, 2)
    if score == "dot_product":
        # beta = 0: the first argument is not read.
        return torch.baddbmm(key_squares.unsqueeze(1), queries, transposed, beta=0, alpha=-1)
    return torch.baddbmm(key_squares.unsqueeze(1), queries, transposed, alpha=-2)


def select_form(num_subkeys: int, half_dim: int, topk: int, score: str, dtype: torch.dtype) -> KernelForm:
    """How sub-keys are selected from lists of n sub-keys of h numbers."""
    padded = triton.next_power_of_2(num_subkeys)
    constants = {
        "ROUNDING": _ROUNDING * torch.finfo(dtype).eps,
        "N": num_subkeys,
        "N_PADDED": padded,
        "H": half_dim,
        "H_PADDED": triton.next_power_of_2(half_dim),
        "K": topk,
        "K_PADDED": triton.next_power_of_2(topk),
        "ROWS": max(1, _NUMBERS // padded),
        "IDW": score != "dot_product",
    }
    return KernelForm(select_kernel, constants, num_warps=1)


def slots_form(num_subkeys: int, topk: int, score: str, statistics: bool) -> KernelForm:
    """How slots are selected; with `statistics` the probabilities are asked for."""
    pairs = triton.next_power_of_2(sum(topk // (i + 1) for i in range(topk)))
    constants = {
        "EPSILON": IDW_EPSILON,
        "N": num_subkeys,
        "K": topk,
        "K_PADDED": triton.next_power_of_2(topk),
        "PAIRS_PADDED": pairs,
        "ROWS": max(1, _NUMBERS // pairs),
        "IDW": score != "dot_product",
        "STATISTICS": statistics,
    }
    return KernelForm(slots_kernel, constants if statistics else constants | {"PROBABILITIES": None}, num_warps=1)


def select_sub_keys(queries: Tensor, sub_keys: Tensor, topk: int, score: str, first_key: int = 0) -> KeptSubKeys:
    """The `topk` best sub-keys of each list for every token; equal costs: lowest index first. No gradient.

    Args:
        queries: [G, M, h] halves of the queries.
        sub_keys: [G, n, h]; n is at most 4096, so that one warp can hold the proposals.
        topk: at most n and 32, so that there is one for each thread of a warp.
        score: `idw` or `dot_product`.
        first_key: number of the first of these sub-keys, where they are part of longer lists.

    Returns:
        Indices (int32) and exact costs, best first.
    """
    sub_keys = sub_keys.contiguous()
    key_squares = sub_keys.square().sum(-1)
    step = max(1, _BLOCK_ELEMENTS // key_squares.numel())
    blocks = [
        _select_block(block, sub_keys, key_squares, topk, score, first_key) for block in queries.split(step, dim=1)
    ]
    if len(blocks) == 1:
        return blocks[0]
    return KeptSubKeys(torch.cat([b.indices for b in blocks], 1), torch.cat([b.costs for b in blocks], 1))


def _select_block(
    queries: Tensor, sub_keys: Tensor, key_squares: Tensor, topk: int, score: str, first_key: int
) -> KeptSubKeys:
    groups, tokens, half_dim = queries.shape
    queries, group_rows, token_rows = rows_of(queries)
    indices = torch.empty(groups, tokens, topk, dtype=torch.int32, device=queries.device)
    costs = queries.new_empty(groups, tokens, topk)
    form = select_form(sub_keys.shape[1], half_dim, topk, score, queries.dtype)
    arguments = {
        "PROPOSALS": propose_costs(queries, sub_keys, key_squares, score),
        "QUERIES": queries,
        "SUB_KEYS": sub_keys,
        "LARGEST": key_squares.amax(-1),
        "INDICES": indices,
        "COSTS": costs,
        "tokens": tokens,
        "group_rows": group_rows,
        "token_rows": token_rows,
        "first_key": first_key,
    }
    form.launch((triton.cdiv(tokens, form.constants["ROWS"]), groups), arguments)
    return KeptSubKeys(indices, costs)


def select_slots(kept: KeptSubKeys, num_subkeys: int, score: str, moving: int = 0) -> SlotChoice:
    """The topk best slots of every token and head; equal sums: lowest slot first. No gradient.

    Args:
        kept: indices and costs [G, M, k] of the kept sub-keys, best first.
        num_subkeys: n of a whole list.
        score: `idw` or `dot_product`.
        moving: the first tokens, which move the sub-keys; without any, probabilities are None.
    """
    groups, tokens, topk = kept.costs.shape
    heads = groups // 2
    device = kept.costs.device
    scores = kept.costs.new_empty(tokens, heads, topk)
    slots = torch.empty(tokens, heads, topk, dtype=torch.int64, device=device)
    positions = torch.empty(2, tokens, heads, topk, dtype=torch.int32, device=device)
    probabilities = torch.empty_like(kept.costs) if moving else None
    form = slots_form(num_subkeys, topk, score, moving > 0)
    arguments = {
        "INDICES": kept.indices,
        "COSTS": kept.costs,
        "SCORES": scores,
        "SLOTS": slots,
        "POSITIONS": positions,
        "PROBABILITIES": probabilities,
        "tokens": tokens,
        "moving": moving,
    }
    form.launch((triton.cdiv(tokens, form.constants["ROWS"]), heads), arguments)
    return SlotChoice(scores, slots, positions, probabilities)
