"""Product-key selection in Triton kernels: no host synchronisation, the same result as `selection.py` up to rounding.

Shapes: G = heads * 2 groups (one list of n sub-keys each), M tokens, k = topk, h = key_dim / 2.

cuBLAS proposes costs for all sub-keys, a kernel keeps the k best by exact costs and settles doubts and ties itself. The
result for a token does not depend on the tokens it is batched with, bit for bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernel_forms import KernelForm, cdiv, next_power_of_2
from ..epsilons import IDW_EPSILON
from ..selection import KeptSubKeys, SlotChoice, sort_key_dtype
from .select_kernels import address_kernel, select_kernel, slots_kernel

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


class Addressing(NamedTuple):
    """What tokens read.

    Attributes:
        kept: the best sub-keys of every list.
        choice: the best slots.
        sort_keys: [G, M, k] list * n + index of what is kept, or None where nothing moves; 16-bit where they fit.
    """

    kept: KeptSubKeys
    choice: SlotChoice
    sort_keys: Tensor | None


def propose(queries: Tensor, sub_keys: Tensor) -> Tensor:
    """Products [G, M, n] of queries [G, M, h] and sub-keys [G, n, h], from which kernels propose costs."""
    return torch.bmm(queries, sub_keys.transpose(1, 2))


@cache
def select_form(
    num_subkeys: int,
    half_dim: int,
    topk: int,
    score: str,
    dtype: torch.dtype,
    numbers: int = _NUMBERS,
    rounding: float = _ROUNDING,
) -> KernelForm:
    """How sub-keys are selected from lists of n sub-keys of h numbers."""
    padded = next_power_of_2(num_subkeys)
    constants = {
        "ROUNDING": rounding * torch.finfo(dtype).eps,
        "N": num_subkeys,
        "N_PADDED": padded,
        "H": half_dim,
        "H_PADDED": next_power_of_2(half_dim),
        "K": topk,
        "K_PADDED": next_power_of_2(topk),
        "ROWS": max(1, numbers // padded),
        "IDW": score != "dot_product",
    }
    return KernelForm(select_kernel, constants, num_warps=1)


@cache
def slots_form(num_subkeys: int, topk: int, score: str, statistics: bool, numbers: int = _NUMBERS) -> KernelForm:
    """How slots are selected; with `statistics` the probabilities are asked for."""
    pairs = next_power_of_2(sum(topk // (i + 1) for i in range(topk)))
    constants = {
        "EPSILON": IDW_EPSILON,
        "N": num_subkeys,
        "K": topk,
        "K_PADDED": next_power_of_2(topk),
        "PAIRS_PADDED": pairs,
        "ROWS": max(1, numbers // pairs),
        "IDW": score != "dot_product",
        "STATISTICS": statistics,
    }
    return KernelForm(slots_kernel, constants if statistics else constants | {"PROBABILITIES": None}, num_warps=1)


@cache
def address_form(
    num_subkeys: int,
    half_dim: int,
    topk: int,
    score: str,
    dtype: torch.dtype,
    statistics: bool,
    numbers: int = _NUMBERS,
    rounding: float = _ROUNDING,
) -> KernelForm:
    """How both are done at once."""
    select = select_form(num_subkeys, half_dim, topk, score, dtype, numbers, rounding).constants
    slots = slots_form(num_subkeys, topk, score, statistics, numbers).constants
    absent = {} if statistics else {"SORT_KEYS": None}
    constants = {**select, **slots, **absent, "ROWS": min(select["ROWS"], slots["ROWS"])}
    return KernelForm(address_kernel, constants, num_warps=1)


def select_sub_keys(
    queries: Tensor, sub_keys: Tensor, topk: int, score: str, first_key: int = 0, lengths: Tensor | None = None
) -> KeptSubKeys:
    """The `topk` best sub-keys of each list for every token; equal costs: lowest index first. No gradient.

    Args:
        queries: [G, M, h] halves of the queries.
        sub_keys: [G, n, h]; n is at most 4096, so that one warp can hold the proposals.
        topk: at most n and 32, so that there is one for each thread of a warp.
        score: `idw` or `dot_product`.
        first_key: number of the first of these sub-keys, where they are part of longer lists.
        lengths: [G, n] of the sub-keys, if they are known.

    Returns:
        Indices (int32) and exact costs, best first.
    """
    groups, _, half_dim = queries.shape
    form = select_form(sub_keys.shape[1], half_dim, topk, score, queries.dtype, _NUMBERS, _ROUNDING)
    kept = _room_for_sub_keys(queries, topk)
    record = {"INDICES": kept.indices, "COSTS": kept.costs, "first_key": first_key}
    _launch_in_blocks(form, queries, sub_keys, lengths, groups, record)
    return kept


def address(
    queries: Tensor, sub_keys: Tensor, topk: int, score: str, moving: int = 0, lengths: Tensor | None = None
) -> Addressing:
    """Sub-keys and slots at once, of lists that are whole on this process.

    Args:
        queries: see `select_sub_keys`.
        sub_keys: see there.
        topk: see there.
        score: see there.
        moving: see `select_slots`.
        lengths: see `select_sub_keys`.
    """
    groups, _, half_dim = queries.shape
    num_subkeys = sub_keys.shape[1]
    form = address_form(num_subkeys, half_dim, topk, score, queries.dtype, moving > 0, _NUMBERS, _ROUNDING)
    kept = _room_for_sub_keys(queries, topk)
    choice = _room_for_slots(kept, moving)
    sort_keys = None
    if moving:
        sort_keys = torch.empty_like(kept.indices, dtype=sort_key_dtype(groups * num_subkeys))
    record = {
        "INDICES": kept.indices,
        "COSTS": kept.costs,
        "SORT_KEYS": sort_keys,
        "moving": moving,
        **_by_name(choice),
    }
    _launch_in_blocks(form, queries, sub_keys, lengths, groups // 2, record)
    return Addressing(kept, choice, sort_keys)


def _launch_in_blocks(
    form: KernelForm,
    queries: Tensor,
    sub_keys: Tensor,
    lengths: Tensor | None,
    columns: int,
    record: dict[str, Any],
) -> None:
    """Propose and select for all tokens, so many at a time that their proposals do not become too large."""
    sub_keys = sub_keys.contiguous()
    if lengths is None:
        lengths = torch.linalg.vector_norm(sub_keys, dim=-1)
    rows, group_rows, token_rows = rows_of(queries)
    tokens = queries.shape[1]
    step = max(1, _BLOCK_ELEMENTS // lengths.numel())
    record |= {
        "QUERIES": rows,
        "SUB_KEYS": sub_keys,
        "LENGTHS": lengths,
        "stride": tokens,
        "group_rows": group_rows,
        "token_rows": token_rows,
    }
    for first in range(0, tokens, step):
        count = min(step, tokens - first)
        block = queries if count == tokens else queries[:, first : first + count]
        part = {"PRODUCTS": propose(block, sub_keys), "first_token": first, "tokens": count}
        form.launch((cdiv(count, form.constants["ROWS"]), columns), record, part)


def _room_for_sub_keys(queries: Tensor, topk: int) -> KeptSubKeys:
    groups, tokens, _ = queries.shape
    indices = torch.empty(groups, tokens, topk, dtype=torch.int32, device=queries.device)
    return KeptSubKeys(indices, queries.new_empty(groups, tokens, topk))


def _room_for_slots(kept: KeptSubKeys, moving: int) -> SlotChoice:
    groups, tokens, topk = kept.costs.shape
    shape = tokens, groups // 2, topk
    return SlotChoice(
        kept.costs.new_empty(shape),
        kept.indices.new_empty(shape, dtype=torch.int64),
        kept.indices.new_empty(2, *shape),
        torch.empty_like(kept.costs) if moving else None,
    )


def _by_name(choice: SlotChoice) -> dict[str, Tensor | None]:
    return {
        "SCORES": choice.scores,
        "SLOTS": choice.slots,
        "POSITIONS": choice.positions,
        "PROBABILITIES": choice.probabilities,
    }


def select_slots(kept: KeptSubKeys, num_subkeys: int, score: str, moving: int = 0) -> SlotChoice:
    """The topk best slots of every token and head; equal sums: lowest slot first. No gradient.

    Args:
        kept: indices and costs [G, M, k] of the kept sub-keys, best first.
        num_subkeys: n of a whole list.
        score: `idw` or `dot_product`.
        moving: the first tokens, which move the sub-keys; without any, probabilities are None.
    """
    groups, tokens, topk = kept.costs.shape
    choice = _room_for_slots(kept, moving)
    form = slots_form(num_subkeys, topk, score, moving > 0, _NUMBERS)
    record = {"INDICES": kept.indices, "COSTS": kept.costs, "tokens": tokens, "moving": moving}
    form.launch((cdiv(tokens, form.constants["ROWS"]), groups // 2), record, _by_name(choice))
    return choice
