# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of what moves the sub-keys, token by token, and its gradient; names are those of the README.

Symbols (README.md): G lists of sub-keys: 2 for each head; list = head * 2 + half | M tokens that a piece reads | R
readers of a sub-key's half: tokens that move the sub-keys, times heads | h half of a query: key_dim / 2 | k topk | n
sub-keys of a whole list; there are n * n slots | n' sub-keys of a list on this process.

A pair is a kept sub-key of a token, numbered as in [G, M, k]. A query row has h numbers; that of a token is
group * group_rows + token * token_rows. COUNT is n', from number `first_key` on. Sums over the readers of a sub-key
are made in `reader_kernels.py`. Addresses are 64-bit. Arithmetic is in the dtype of the sub-keys (float32; float64 in
tests).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .key_formulas import density_of, kept_score_gradient, second_derivative, slope_of


@triton.jit(do_not_specialize=["tokens", "readers"])
def strength_kernel(
    INDICES,  # [G, M, k] int32
    COSTS,  # [G, M, k]
    PROBABILITIES,  # [G, M, k]: P, 0 for tokens that do not move keys
    MEANS,  # [2, n]: mean P
    STEP,  # [1]: beta, the step size
    STRENGTHS,  # [G, M, k] out: c
    tokens,  # M
    readers,  # R
    EPSILON: tl.constexpr,
    ENTROPY_EPSILON: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    IDW: tl.constexpr,
):
    """c = beta / R * P * (u - sum P u), for idw times 2 rho. Grid: (blocks of ROWS tokens, G)."""
    group = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    places = tl.arange(0, K_PADDED)
    pairs = (group * tokens + token[:, None]) * K + places[None, :]
    inside = (token[:, None] < tokens) & (places[None, :] < K)
    index = tl.load(INDICES + pairs, mask=inside, other=0)
    share = tl.load(PROBABILITIES + pairs, mask=inside, other=0.0)
    slope = slope_of(tl.load(MEANS + (group % 2) * N + index), ENTROPY_EPSILON)
    expected = tl.sum(share * slope, 1)
    strength = tl.load(STEP) / readers * share * (slope - expected[:, None])
    if IDW:
        strength *= 2 * density_of(tl.load(COSTS + pairs, mask=inside, other=0.0), EPSILON, IDW)
    tl.store(STRENGTHS + pairs, strength, mask=inside)


@triton.jit
def slope_gradient(weighted, share, cost, EPSILON: tl.constexpr, IDW: tl.constexpr):
    """What every pair adds to R times the gradient of its sub-key's u; `weighted` is beta / R * gamma.

    With v = beta / R * gradient of y it is (v - sum v P) * P; the gradient of y is gamma, for idw times 2 rho.
    """
    if IDW:
        weighted *= 2 * density_of(cost, EPSILON, IDW)
    balance = -tl.sum(weighted * share, 1)
    return (weighted + balance[:, None]) * share


@triton.jit(do_not_specialize=["tokens", "group_rows", "token_rows", "first_key", "readers"])
def strength_gradient_kernel(
    QUERIES,
    SUB_KEYS,  # [G, n', h]
    GRAD_MOVED,  # [G, n', h]: gradient of the sub-keys after the piece
    INDICES,  # [G, M, k] int32
    GRAD_STRENGTHS,  # [G, M, k] out: gamma, 0 for sub-keys that are not here
    COSTS,  # this and the next three as for `slope_gradient_kernel`; unused without SLOPES
    PROBABILITIES,
    STEP,
    SLOPE_GRADIENTS,
    tokens,  # M
    group_rows,
    token_rows,
    first_key,
    readers,  # R
    EPSILON: tl.constexpr,
    COUNT: tl.constexpr,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    IDW: tl.constexpr,
    SLOPES: tl.constexpr,
):
    """gamma = -<q - K, gradient of the moved K>, for dot products -<q, gradient>. Grid: (blocks of ROWS tokens, G)."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    places = tl.arange(0, K_PADDED)[None, :]
    inside = (token < tokens)[:, None] & (places < K)
    pairs = (group * tokens + token)[:, None] * K + places
    key = tl.load(INDICES + pairs, mask=inside, other=-1) - first_key
    here = inside & (key >= 0) & (key < COUNT)
    query_row = (group * group_rows + token * token_rows)[:, None] * H
    row = ((group * COUNT + key) * H)[:, :, None]
    total = tl.full([ROWS, K_PADDED], 0, GRAD_STRENGTHS.dtype.element_ty)
    for begin in range(0, H, BLOCK):
        dims = begin + tl.arange(0, BLOCK)
        real = here[:, :, None] & (dims < H)[None, None, :]
        query_real = (token < tokens)[:, None] & (dims < H)[None, :]
        direction = tl.load(QUERIES + query_row + dims[None, :], mask=query_real, other=0.0)[:, None, :]
        if IDW:
            direction -= tl.load(SUB_KEYS + row + dims[None, None, :], mask=real, other=0.0)
        gradient = tl.load(GRAD_MOVED + row + dims[None, None, :], mask=real, other=0.0)
        total -= tl.sum(direction * gradient, 2)
    tl.store(GRAD_STRENGTHS + pairs, total, mask=inside)
    if SLOPES:
        share = tl.load(PROBABILITIES + pairs, mask=inside, other=0.0)
        cost = tl.load(COSTS + pairs, mask=inside, other=0.0)
        weighted = tl.where(inside, total, 0.0) * (tl.load(STEP) / readers)
        tl.store(SLOPE_GRADIENTS + pairs, slope_gradient(weighted, share, cost, EPSILON, IDW), mask=inside)


@triton.jit(do_not_specialize=["tokens", "readers"])
def slope_gradient_kernel(
    COSTS,  # [G, M, k]
    PROBABILITIES,  # [G, M, k]
    GRAD_STRENGTHS,  # [G, M, k]: gamma
    STEP,  # [1]
    SLOPE_GRADIENTS,  # [G, M, k] out
    tokens,  # M
    readers,  # R
    EPSILON: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    IDW: tl.constexpr,
):
    """What every pair adds to R times the gradient of its sub-key's u. Grid: (blocks of ROWS tokens, G)."""
    group = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    places = tl.arange(0, K_PADDED)
    pairs = (group * tokens + token[:, None]) * K + places[None, :]
    inside = (token[:, None] < tokens) & (places[None, :] < K)
    share = tl.load(PROBABILITIES + pairs, mask=inside, other=0.0)
    cost = tl.load(COSTS + pairs, mask=inside, other=0.0)
    weighted = tl.load(GRAD_STRENGTHS + pairs, mask=inside, other=0.0) * (tl.load(STEP) / readers)
    tl.store(SLOPE_GRADIENTS + pairs, slope_gradient(weighted, share, cost, EPSILON, IDW), mask=inside)


@triton.jit(do_not_specialize=["tokens", "group_rows", "token_rows", "first_key", "grad_rows", "readers"])
def token_backward_kernel(
    QUERIES,
    SUB_KEYS,  # [G, n', h]
    INDICES,  # [G, M, k] int32
    COSTS,  # [G, M, k]
    POSITIONS,  # [2, M, heads, k] int32: kept sub-key of each slot
    GRAD_SCORES,  # [M, heads, k]: gradient of the slots' scores
    PROBABILITIES,  # this and the next six are used if the sub-keys moved: [G, M, k]
    STRENGTHS,  # [G, M, k]: c
    GRAD_STRENGTHS,  # [G, M, k]: gamma
    MEANS,  # [2, n]
    GRAD_SLOPES,  # [2, n]: mean over all readers, divided by R
    STEP,  # [1]
    GRAD_MOVED,  # [G, n', h]
    GRAD_QUERIES,  # [G, stream, h] in and out; group stride in rows is grad_rows
    WEIGHTS,  # [G, M, k] out: the gradient of a sub-key is minus the sum of weight * direction over its readers
    tokens,  # M
    group_rows,
    token_rows,
    first_key,
    grad_rows,
    readers,  # R
    EPSILON: tl.constexpr,
    ENTROPY_EPSILON: tl.constexpr,
    COUNT: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    IDW: tl.constexpr,
    MOVED: tl.constexpr,
):
    """Gradients of tokens' queries, and the weights of their kept sub-keys. Grid: (blocks of ROWS tokens, G)."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    half = group % 2
    heads = tl.num_programs(1) // 2
    places = tl.arange(0, K_PADDED)
    inside = (token < tokens)[:, None] & (places < K)[None, :]
    pairs = (group * tokens + token)[:, None] * K + places[None, :]
    index = tl.load(INDICES + pairs, mask=inside, other=0)
    density = density_of(tl.load(COSTS + pairs, mask=inside, other=0.0), EPSILON, IDW)

    slots = (token * heads + group // 2)[:, None] * K + places[None, :]
    position = tl.load(POSITIONS + half * tokens * heads * K + slots, mask=inside, other=-1)
    grad_slot = tl.load(GRAD_SCORES + slots, mask=inside, other=0.0)
    grad_score = kept_score_gradient(grad_slot, position, places)
    grad_cost = tl.full([ROWS, K_PADDED], 0, grad_score.dtype)
    strength = tl.full([ROWS, K_PADDED], 0, grad_score.dtype)
    if MOVED:
        strength = tl.load(STRENGTHS + pairs, mask=inside, other=0.0)
        grad_strength = tl.load(GRAD_STRENGTHS + pairs, mask=inside, other=0.0)
        weighted = grad_strength * (tl.load(STEP) / readers)
        if IDW:
            weighted *= 2 * density
            grad_cost = -density * strength * grad_strength
        share = tl.load(PROBABILITIES + pairs, mask=inside, other=0.0)
        mean = tl.load(MEANS + half * N + index)
        grad_slope = tl.load(GRAD_SLOPES + half * N + index)
        grad_score += second_derivative(weighted, share, mean, grad_slope, ENTROPY_EPSILON)
    if IDW:
        weight = 2 * (grad_cost - density * grad_score)
    else:
        weight = -grad_score
    tl.store(WEIGHTS + pairs, weight, mask=inside)
    key = index - first_key
    here = inside & (key >= 0) & (key < COUNT)
    weight = tl.where(here, weight, 0.0)
    row = ((group * COUNT + key) * H)[:, :, None]
    query_row = (group * group_rows + token * token_rows)[:, None] * H
    out_row = (group * grad_rows + token)[:, None] * H
    for begin in range(0, H, BLOCK):
        dims = begin + tl.arange(0, BLOCK)
        real = here[:, :, None] & (dims < H)[None, None, :]
        query_real = (token < tokens)[:, None] & (dims < H)[None, :]
        along = -tl.load(SUB_KEYS + row + dims[None, None, :], mask=real, other=0.0)
        if IDW:
            along += tl.load(QUERIES + query_row + dims[None, :], mask=query_real, other=0.0)[:, None, :]
        gradient = tl.sum(weight[:, :, None] * along, 1)
        if MOVED:
            moved = tl.load(GRAD_MOVED + row + dims[None, None, :], mask=real, other=0.0)
            gradient -= tl.sum(strength[:, :, None] * moved, 1)
        gradient += tl.load(GRAD_QUERIES + out_row + dims[None, :], mask=query_real, other=0.0)
        tl.store(GRAD_QUERIES + out_row + dims[None, :], gradient, mask=query_real)
