# mypy: disable-error-code="no-untyped-def"
"""Triton kernels that choose sub-keys and slots.

Symbols (README.md): G lists of sub-keys: 2 for each head; list = head * 2 + half | M tokens that a piece reads | h half
of a query: key_dim / 2 | k topk | n sub-keys of a whole list; there are n * n slots.

Names in capitals with PADDED are the next powers of two. A program is one warp, so that nothing in it waits for
another; it serves ROWS tokens of one group or head, one of them where the lists are long. What it computes for a token
does not depend on the other tokens.

Addresses are 64-bit. Arithmetic is in the dtype of the sub-keys (float32; float64 in tests).
"""

from __future__ import annotations

import triton
import triton.language as tl

_LONG: tl.constexpr = tl.constexpr(2048)
"""Sub-keys of a list from whose double on proposals are made in parts: a thread holds 128 of them, and could not hold
what they are made of, too."""
_PART: tl.constexpr = tl.constexpr(512)
"""Sub-keys of such a part."""


@triton.jit
def _ordered(bits):
    """Whole numbers in the order of the float32 numbers with these bits; it is its own inverse."""
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _last_doubtful(candidate, norms, square, ROUNDING: tl.constexpr, COLUMN_BITS: tl.constexpr, IDW: tl.constexpr):
    """The last candidate that rounding may have put behind the k-th one."""
    # The largest number the k-th can stand for, and how far its exact cost and another's may be off.
    last = _ordered(candidate | COLUMN_BITS).to(tl.float32, bitcast=True).to(norms.dtype)
    doubt = norms * ROUNDING + tl.abs(last) * 2.4e-7
    if IDW:
        doubt += tl.abs(last + square) * ROUNDING
    return _ordered((last + doubt).to(tl.float32).to(tl.int32, bitcast=True)) | COLUMN_BITS


@triton.jit
def _in_order(costs, indices, order, places, K: tl.constexpr):
    """Costs and indices [ROWS, K_PADDED], lowest cost first, equal costs: lowest `order` first; 0 in places from k on.

    A place's rank is the number of better ones. A query that is not a number has found none: any index will do.
    """
    mine, other = costs[:, :, None], costs[:, None, :]
    ahead = (other < mine) | ((other == mine) & (order[:, None, :] < order[:, :, None]))
    rank = tl.sum((ahead & (places < K)[:, None, :]).to(tl.int32), 2)
    goes = (rank[:, :, None] == places[:, None, :]) & (places < K)[:, :, None]
    return tl.sum(tl.where(goes, costs[:, :, None], 0.0), 1), tl.sum(tl.where(goes, indices[:, :, None], 0), 1)


@triton.jit
def _make_candidates(
    PRODUCTS,
    LENGTHS,
    group,
    token,
    tokens,
    real,
    begin,
    N: tl.constexpr,
    COLUMNS: tl.constexpr,
    COLUMN_BITS: tl.constexpr,
    IDW: tl.constexpr,
):
    """Proposals [ROWS, COLUMNS] for the sub-keys from number `begin` on, and the longest length of these sub-keys [1].

    A proposal becomes one whole number: its float32 bits, made monotone, with those of COLUMN_BITS replaced by its
    column. The minimum of these is found with one instruction per number, and tells the column.
    """
    columns = begin + tl.arange(0, COLUMNS)[None, :]
    exists = real & (columns < N)
    products = tl.load(PRODUCTS + (group * tokens + token)[:, None] * N + columns, mask=exists, other=0.0)
    lengths = tl.load(LENGTHS + group * N + columns, mask=columns < N, other=0.0)
    if IDW:
        # Without the square of the query, which does not change an order.
        proposals = (lengths * lengths - 2 * products).to(tl.float32)
    else:
        proposals = (-products).to(tl.float32)
    # What is not a number comes last.
    proposals = tl.where(proposals == proposals, proposals, float("inf"))
    candidates = (_ordered(proposals.to(tl.int32, bitcast=True)) & ~COLUMN_BITS) | columns
    return tl.where(exists, candidates, 0x7FFFFFFF), tl.max(lengths, 1)


@triton.jit
def _best_sub_keys(
    PRODUCTS,
    QUERIES,
    SUB_KEYS,
    LENGTHS,
    group,
    token,
    first_token,
    tokens,
    group_rows,
    token_rows,
    ROUNDING: tl.constexpr,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    H: tl.constexpr,
    H_PADDED: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    IDW: tl.constexpr,
):
    """Costs and numbers [ROWS, K_PADDED] of the k sub-keys of lowest exact cost, best first; 0 in places from k on.

    Candidates come in the order of their proposals. Each is scored exactly and replaces the worst of the k best so far
    if it is better. After k of them, the loop goes on as long as rounding may have put a candidate behind its place.
    """
    real = (token < tokens)[:, None]
    dims = tl.arange(0, H_PADDED)[None, :]
    places = tl.arange(0, K_PADDED)[None, :]
    taken: tl.constexpr = 0x7FFFFFFF
    column_bits: tl.constexpr = N_PADDED - 1

    if N_PADDED > _LONG:
        parts: tl.constexpr = N_PADDED // _PART
        together = tl.full([ROWS, _PART, parts], 0, tl.int32)
        longest = tl.full([1], 0, LENGTHS.dtype.element_ty)
        for part in range(parts):
            some, longest_of_some = _make_candidates(
                PRODUCTS, LENGTHS, group, token, tokens, real, part * _PART, N, _PART, column_bits, IDW
            )
            together = tl.where(tl.arange(0, parts)[None, None, :] == part, some[:, :, None], together)
            longest = tl.maximum(longest, longest_of_some)
        # Each tells its column, so their order does not matter.
        candidates = tl.reshape(together, [ROWS, N_PADDED])
    else:
        candidates, longest = _make_candidates(
            PRODUCTS, LENGTHS, group, token, tokens, real, 0, N, N_PADDED, column_bits, IDW
        )

    query_row = (group * group_rows + (first_token + token) * token_rows)[:, None] * H
    query = tl.load(QUERIES + query_row + dims, mask=real & (dims < H), other=0.0)
    square = tl.sum(query * query, 1)
    norms = tl.sqrt(square * (longest * longest) * H)

    # Places that do not exist hold what is never the worst; the others what every candidate beats.
    costs = tl.full([ROWS, K_PADDED], 0, query.dtype) + tl.where(places < K, float("inf"), float("-inf"))
    chosen = tl.full([ROWS, K_PADDED], N_PADDED, tl.int32) + places
    worst = tl.full([ROWS], N_PADDED + K - 1, tl.int32)
    found = 0
    limit = tl.full([ROWS], taken - 1, tl.int32)
    candidate = tl.min(candidates, 1)
    while tl.max((candidate <= limit).to(tl.int32), 0) > 0:
        candidates = tl.where(candidates == candidate[:, None], taken, candidates)
        wanted = (candidate <= limit)[:, None]
        column = (candidate & column_bits)[:, None]
        row = tl.load(SUB_KEYS + (group * N + column) * H + dims, mask=wanted & (dims < H), other=0.0)
        if IDW:
            cost = tl.sum((query - row) * (query - row), 1)[:, None]
        else:
            cost = -tl.sum(query * row, 1)[:, None]
        better = (cost < costs) | ((cost == costs) & (column < chosen))
        replaced = better & (chosen == worst[:, None]) & wanted
        costs = tl.where(replaced, cost, costs)
        chosen = tl.where(replaced, column, chosen)
        worst = tl.max(tl.where(costs == tl.max(costs, 1)[:, None], chosen, -1), 1)
        found += 1
        if found == K:
            limit = tl.minimum(_last_doubtful(candidate, norms, square, ROUNDING, column_bits, IDW), taken - 1)
        candidate = tl.min(candidates, 1)

    return _in_order(costs, tl.where(chosen < N, chosen, places), chosen, places, K)


@triton.jit
def _choose_slots(
    SCORES,
    SLOTS,
    POSITIONS,
    cost1,  # [ROWS, K_PADDED], best first
    index1,
    cost2,
    index2,
    row,
    real,
    tokens,
    EPSILON: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PAIRS_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    IDW: tl.constexpr,
):
    """Store the k best pairs of both halves, equal sums: lowest slot first; `row` is token * heads + head.

    In two sorted lists only pairs (i, j) with (i + 1) * (j + 1) <= k can be among the k best.
    """
    pairs = tl.arange(0, PAIRS_PADDED)[None, :]
    # Pair number -> (i, j): row i of the staircase has k // (i + 1) pairs.
    i = tl.full([ROWS, PAIRS_PADDED], 0, tl.int32)
    j = i + pairs
    total = K
    for step in tl.static_range(1, K):
        i = tl.where(pairs >= total, step, i)
        j = tl.where(pairs >= total, pairs - total, j)
        total += K // (step + 1)
    valid = real & (pairs < total)
    i = tl.where(valid, i, 0)
    j = tl.where(valid, j, 0)

    cost1 = tl.gather(cost1, i, 1)
    cost2 = tl.gather(cost2, j, 1)
    if IDW:
        scores = -tl.log(cost1 + EPSILON) - tl.log(cost2 + EPSILON)
    else:
        scores = -cost1 - cost2
    slots = tl.gather(index1, i, 1) * N + tl.gather(index2, j, 1)

    nothing: tl.constexpr = 0x7FFFFFFF
    # What is not a number comes last.
    remaining = tl.where(scores == scores, scores, float("-inf"))
    waiting = tl.where(valid, slots, nothing)
    rank = tl.full([ROWS, PAIRS_PADDED], K, tl.int32)
    for place in range(K):
        best = tl.max(tl.where(waiting < nothing, remaining, float("-inf")), 1)[:, None]
        slot = tl.min(tl.where(remaining == best, waiting, nothing), 1)[:, None]
        hit = waiting == slot
        rank = tl.where(hit & (rank == K), place, rank)
        waiting = tl.where(hit, nothing, waiting)

    out = row[:, None] * K + rank
    kept = valid & (rank < K)
    tl.store(SCORES + out, scores, mask=kept)
    tl.store(SLOTS + out, slots.to(tl.int64), mask=kept)
    tl.store(POSITIONS + out, i, mask=kept)
    tl.store(POSITIONS + tokens.to(tl.int64) * tl.num_programs(1) * K + out, j, mask=kept)


@triton.jit
def _shares(cost, inside, moves, EPSILON: tl.constexpr, IDW: tl.constexpr):
    """Softmax of the kept scores of every token, 0 for those that do not move the sub-keys."""
    cost = tl.where(inside, cost, float("inf"))
    lowest = tl.min(cost, 1)[:, None]
    if IDW:
        # exp(-log x) is 1 / x. Seen from the best, so that nothing overflows or vanishes.
        share = (lowest + EPSILON) / (cost + EPSILON)
    else:
        share = tl.exp(lowest - cost)
    share = share / tl.sum(share, 1)[:, None]
    return tl.where(moves[:, None], share, 0.0)


@triton.jit(do_not_specialize=["first_token", "tokens", "stride", "group_rows", "token_rows", "first_key"])
def select_kernel(
    PRODUCTS,  # [G, M, n] products of queries and sub-keys, roughly
    QUERIES,  # rows of h numbers; the row of a token is group * group_rows + token * token_rows
    SUB_KEYS,  # [G, n, h]
    LENGTHS,  # [G, n] of the sub-keys, roughly
    INDICES,  # [G, tokens of all launches, k] out, int32, best first
    COSTS,  # [G, tokens of all launches, k] out, exact
    first_token,  # of this launch, which has M of them
    tokens,  # M
    stride,  # tokens of all launches
    group_rows,
    token_rows,
    first_key,  # number of the first sub-key of SUB_KEYS in the whole list
    ROUNDING: tl.constexpr,  # what a proposal can be off by, in units of the sizes it was made of
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    H: tl.constexpr,
    H_PADDED: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    IDW: tl.constexpr,
):
    """The k sub-keys of lowest exact cost, equal costs: lowest index first. Grid: (blocks of ROWS tokens, G)."""
    group = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    places = tl.arange(0, K_PADDED)[None, :]
    cost, index = _best_sub_keys(
        PRODUCTS, QUERIES, SUB_KEYS, LENGTHS, group, token, first_token, tokens, group_rows, token_rows,
        ROUNDING, N, N_PADDED, H, H_PADDED, K, K_PADDED, ROWS, IDW,
    )  # fmt: skip
    out = (group * stride + first_token + token)[:, None] * K + places
    inside = (token < tokens)[:, None] & (places < K)
    tl.store(INDICES + out, index + first_key, mask=inside)
    tl.store(COSTS + out, cost, mask=inside)


@triton.jit(do_not_specialize=["tokens", "moving"])
def slots_kernel(
    INDICES,  # [G, M, k] int32, best first
    COSTS,  # [G, M, k]
    SCORES,  # [M, heads, k] out: sum of both halves' scores, best first
    SLOTS,  # [M, heads, k] out, int64
    POSITIONS,  # [2, M, heads, k] out, int32: where the pair's sub-keys stand among the k of their half
    PROBABILITIES,  # [G, M, k] out: softmax of the kept scores, 0 from token `moving` on; unused without STATISTICS
    tokens,  # M
    moving,
    EPSILON: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    PAIRS_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    IDW: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """The k best pairs of both halves, equal sums: lowest slot first. Grid: (blocks of ROWS tokens, heads)."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    places = tl.arange(0, K_PADDED)[None, :]
    real = (token < tokens)[:, None]
    inside = real & (places < K)
    first = (2 * head * tokens + token)[:, None] * K + places
    second = ((2 * head + 1) * tokens + token)[:, None] * K + places
    cost1 = tl.load(COSTS + first, mask=inside, other=0.0)
    cost2 = tl.load(COSTS + second, mask=inside, other=0.0)
    index1 = tl.load(INDICES + first, mask=inside, other=0)
    index2 = tl.load(INDICES + second, mask=inside, other=0)
    row = token * tl.num_programs(1) + head
    _choose_slots(
        SCORES, SLOTS, POSITIONS, cost1, index1, cost2, index2, row, real, tokens,
        EPSILON, N, K, PAIRS_PADDED, ROWS, IDW,
    )  # fmt: skip
    if STATISTICS:
        moves = token < moving
        tl.store(PROBABILITIES + first, _shares(cost1, places < K, moves, EPSILON, IDW), mask=inside)
        tl.store(PROBABILITIES + second, _shares(cost2, places < K, moves, EPSILON, IDW), mask=inside)


@triton.jit(do_not_specialize=["first_token", "tokens", "stride", "moving", "group_rows", "token_rows"])
def address_kernel(
    PRODUCTS,  # [G, M, n] as for `select_kernel`, as the next three
    QUERIES,
    SUB_KEYS,
    LENGTHS,
    INDICES,  # [G, tokens of all launches, k] out, int32, best first
    COSTS,  # [G, tokens of all launches, k] out, exact
    SORT_KEYS,  # [G, tokens of all launches, k] out: list * n + index
    SCORES,  # [tokens of all launches, heads, k] out, as for `slots_kernel`, as the next three
    SLOTS,
    POSITIONS,
    PROBABILITIES,
    first_token,
    tokens,  # M
    stride,
    moving,
    group_rows,
    token_rows,
    ROUNDING: tl.constexpr,
    EPSILON: tl.constexpr,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    H: tl.constexpr,
    H_PADDED: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    PAIRS_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    IDW: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """Both kernels in one, for lists that are whole on this process. Grid: (blocks of ROWS tokens, heads)."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    places = tl.arange(0, K_PADDED)[None, :]
    real = (token < tokens)[:, None]
    inside = real & (places < K)
    cost2 = tl.full([ROWS, K_PADDED], 0, COSTS.dtype.element_ty)
    index2 = tl.full([ROWS, K_PADDED], 0, tl.int32)
    cost1, index1 = cost2, index2
    # In a loop: otherwise what both halves have in common stays in registers, and registers are spilled.
    for half in range(2):
        cost1, index1 = cost2, index2
        cost2, index2 = _best_sub_keys(
            PRODUCTS, QUERIES, SUB_KEYS, LENGTHS, 2 * head + half, token, first_token, tokens, group_rows, token_rows,
            ROUNDING, N, N_PADDED, H, H_PADDED, K, K_PADDED, ROWS, IDW,
        )  # fmt: skip
        pairs = ((2 * head + half) * stride + first_token + token)[:, None] * K + places
        tl.store(INDICES + pairs, index2, mask=inside)
        tl.store(COSTS + pairs, cost2, mask=inside)
    token += first_token
    first = (2 * head * stride + token)[:, None] * K + places
    second = ((2 * head + 1) * stride + token)[:, None] * K + places
    row = token * tl.num_programs(1) + head
    _choose_slots(
        SCORES, SLOTS, POSITIONS, cost1, index1, cost2, index2, row, real, stride,
        EPSILON, N, K, PAIRS_PADDED, ROWS, IDW,
    )  # fmt: skip
    if STATISTICS:
        moves = token < moving
        tl.store(PROBABILITIES + first, _shares(cost1, places < K, moves, EPSILON, IDW), mask=inside)
        tl.store(PROBABILITIES + second, _shares(cost2, places < K, moves, EPSILON, IDW), mask=inside)
        tl.store(SORT_KEYS + first, (2 * head * N + index1).to(SORT_KEYS.dtype.element_ty), mask=inside)
        tl.store(SORT_KEYS + second, (2 * head * N + N + index2).to(SORT_KEYS.dtype.element_ty), mask=inside)
