# mypy: disable-error-code="no-untyped-def"
"""Triton kernels that sum over the readers of every sub-key; names of numbers are those of the README.

Symbols (README.md): G lists of sub-keys: 2 for each head; list = head * 2 + half | M tokens that a piece reads | R
readers of a sub-key's half: tokens that move the sub-keys, times heads | h half of a query: key_dim / 2 | k topk | n
sub-keys of a whole list; there are n * n slots | n' sub-keys of a list on this process.

A pair is a kept sub-key of a token, numbered as in [G, M, k]. ORDER and STARTS are those of `Readers`. COUNT is n',
from number `first_key` on. A sub-key's readers are summed in tiles of TILE pairs, in the order of the tokens, and the
tiles in their order: which program runs first does not matter, and a sub-key that everybody reads costs no more than
others. Addresses are 64-bit. Arithmetic is in the dtype of the sub-keys (float32; float64 in tests).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .last_program import is_last, load_partials
from .plan_kernels import count_below


@triton.jit(do_not_specialize=["readers", "row", "total", "steps"])
def reader_mean_kernel(
    WEIGHTS,  # [G, M, k], one number per pair
    ORDER,
    SORTED_KEYS,  # [G * M * k] list * n + sub-key at every place of ORDER; unused without FIND
    STARTS,  # in, or out with FIND
    MEANS,  # [2, n] out: sum over the readers of a sub-key, heads pooled, divided by R
    LOSSES,  # [pieces, 2, n] out: mean * log(mean), of row `row`; unused without LOSS
    readers,  # R
    row,
    total,  # G * M * k
    steps,  # 2 ** steps is more
    ENTROPY_EPSILON: tl.constexpr,
    HEADS: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    FIND: tl.constexpr,
    LOSS: tl.constexpr,
):
    """The mean weight of every sub-key of both halves over all readers. Grid: (blocks of ROWS sub-keys, 2)."""
    sub_key = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    half = tl.program_id(1)
    lanes = tl.arange(0, BLOCK)[None, :]
    added = tl.full([ROWS, BLOCK], 0, WEIGHTS.dtype.element_ty)
    for head in range(HEADS):
        segment = (2 * head + half) * N + sub_key
        if FIND:
            start = count_below(SORTED_KEYS, segment, total, steps)
            stop = count_below(SORTED_KEYS, segment + 1, total, steps)
            tl.store(STARTS + segment, start, mask=sub_key < N)
            tl.store(STARTS + segment + 1, stop, mask=(sub_key < N) & (segment == 2 * HEADS * N - 1))
        else:
            start = tl.load(STARTS + segment, mask=sub_key < N, other=0)
            stop = tl.load(STARTS + segment + 1, mask=sub_key < N, other=0)
        stop = tl.where(sub_key < N, stop, start)
        for begin in range(0, tl.max(stop - start, 0), BLOCK):
            positions = start[:, None] + begin + lanes
            inside = positions < stop[:, None]
            pair = tl.load(ORDER + positions, mask=inside, other=0)
            added += tl.load(WEIGHTS + pair, mask=inside, other=0.0)
    mean = tl.sum(added, 1) / readers
    tl.store(MEANS + half * N + sub_key, mean, mask=sub_key < N)
    if LOSS:
        tl.store(LOSSES + (2 * row + half) * N + sub_key, mean * tl.log(mean + ENTROPY_EPSILON), mask=sub_key < N)


@triton.jit
def _store_sub_keys(
    sums,  # [ROWS, BLOCK]
    totals,  # [ROWS]
    BASE,
    OUT,
    LENGTHS,
    segment,
    real,
    dims,
    H: tl.constexpr,
    ADDED: tl.constexpr,
    TOTALS: tl.constexpr,
    MEASURED: tl.constexpr,
):
    """Store base * (1 + total) - sum of these segments, and with MEASURED how long that is."""
    address = segment.to(tl.int64)[:, None] * H + dims[None, :]
    exists = real[:, None] & (dims < H)[None, :]
    out = -sums
    if ADDED:
        base = tl.load(BASE + address, mask=exists, other=0.0)
        if TOTALS:
            base += base * totals[:, None]
        out += base
    tl.store(OUT + address, out, mask=exists)
    if MEASURED:
        tl.store(LENGTHS + segment, tl.sqrt(tl.sum(out * out, 1)), mask=real)


@triton.jit
def _find_segment(
    STARTS,
    number,
    first_key,
    COUNT: tl.constexpr,
    N: tl.constexpr,
    SEGMENTS: tl.constexpr,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The segments [ROWS] of the tiles of these numbers, and where their pairs begin and end."""
    segment = tl.full([ROWS], 0, tl.int32)
    for step in tl.static_range(STEPS):
        later = segment + (1 << (STEPS - 1 - step))
        start = tl.load(STARTS + later // COUNT * N + first_key + later % COUNT, mask=later < SEGMENTS, other=0)
        segment = tl.where((later < SEGMENTS) & (start // TILE + later <= number), later, segment)
    place = segment // COUNT * N + first_key + segment % COUNT
    return segment, tl.load(STARTS + place), tl.load(STARTS + place + 1)


@triton.jit
def _store_tile(
    PARTIALS, PARTIAL_TOTALS, own_totals, number, sums, totals, real, dims, H: tl.constexpr, TOTALS: tl.constexpr
):
    """Store the sums [ROWS, BLOCK] and totals [ROWS] of the tiles of these numbers that are `real`."""
    tl.store(PARTIALS + number[:, None] * H + dims[None, :], sums, mask=real[:, None] & (dims < H)[None, :])
    if TOTALS:
        tl.store(PARTIAL_TOTALS + own_totals + number, totals, mask=real)


@triton.jit
def _sum_tiles(
    PARTIALS,
    PARTIAL_TOTALS,
    own_totals,
    first,
    last,
    dims,
    zero,
    H: tl.constexpr,
    LOADS: tl.constexpr,
    TOTALS: tl.constexpr,
):
    """Sums [ROWS, BLOCK] and totals [ROWS] of the tiles [first, last) of every segment, in their order."""
    sums = zero[:, None, None] + tl.zeros([1, LOADS, 1], zero.dtype) + tl.zeros(dims.shape, zero.dtype)[None, None, :]
    totals = zero[:, None] + tl.zeros([1, LOADS], zero.dtype)
    for begin in range(0, tl.max(last - first, 0), LOADS):
        tiles = first[:, None] + begin + tl.arange(0, LOADS)[None, :]
        inside = tiles < last[:, None]
        mask = inside[:, :, None] & (dims < H)[None, None, :]
        sums += load_partials(PARTIALS + tiles[:, :, None] * H + dims[None, None, :], mask)
        if TOTALS:
            totals += load_partials(PARTIAL_TOTALS + own_totals + tiles, inside)
    return tl.sum(sums, 1), tl.sum(totals, 1)


@triton.jit(do_not_specialize=["tokens", "group_rows", "token_rows", "first_key"])
def tile_kernel(
    WEIGHTS,  # [G, M, k]
    QUERIES,  # rows of h numbers; the row of a token is group * group_rows + token * token_rows
    SUB_KEYS,  # [G, n', h]
    STRENGTHS,  # [G, M, k]: c; unused without TOTALS
    ORDER,
    STARTS,
    PARTIALS,  # [tiles, h] out
    PARTIAL_TOTALS,  # [blocks of h, tiles] out: sum of c; unused without TOTALS
    TICKETS,  # [G * n', blocks of h] int32, zero before and after; this and the next three unused without LAST
    BASE,  # [G, n', h]; unused without ADDED, too
    OUT,  # [G, n', h] out
    LENGTHS,  # [G, n'] out: of OUT; unused without MEASURED, for which a program has all of h
    tokens,  # M
    group_rows,
    token_rows,
    first_key,
    COUNT: tl.constexpr,
    N: tl.constexpr,
    SEGMENTS: tl.constexpr,
    STEPS: tl.constexpr,  # 2 ** STEPS >= SEGMENTS
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    LOADS: tl.constexpr,
    IDW: tl.constexpr,
    TOTALS: tl.constexpr,
    ADDED: tl.constexpr,
    MEASURED: tl.constexpr,
    LAST: tl.constexpr,
):
    """Sum of weight * (q - K), for dot products weight * q, over tiles of sub-keys' readers.

    Segment s begins with tile number starts[s] // TILE + s. That leaves every segment room for ceil(length / TILE)
    tiles, and one if it is empty, without counting the tiles before it; a search among the starts finds the segment of
    a tile. With LAST, for programs of one tile, the last of a segment's programs does what `finish_kernel` does.
    Grid: (blocks of ROWS tiles, blocks of h).
    """
    number = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    segment, start, end = _find_segment(STARTS, number, first_key, COUNT, N, SEGMENTS, STEPS, TILE, ROWS)
    begin = start + (number - (start // TILE + segment)) * TILE
    # Tiles before the first segment are those of other processes' sub-keys.
    stop = tl.where(begin < start, begin, tl.minimum(end, begin + TILE))

    group = (segment // COUNT).to(tl.int64)
    dims = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(SUB_KEYS + segment.to(tl.int64)[:, None] * H + dims[None, :], mask=(dims < H)[None, :], other=0.0)
    total = tl.full([ROWS, LOADS, BLOCK], 0, key.dtype)
    strengths = tl.full([ROWS, LOADS], 0, key.dtype)
    for first in range(0, tl.max(stop - begin, 0), LOADS):
        positions = begin[:, None] + first + tl.arange(0, LOADS)[None, :]
        inside = positions < stop[:, None]
        pair = tl.load(ORDER + positions, mask=inside, other=0)
        weight = tl.load(WEIGHTS + pair, mask=inside, other=0.0)
        row = group[:, None] * group_rows + (pair // K - group[:, None] * tokens) * token_rows
        direction = tl.load(
            QUERIES + row[:, :, None] * H + dims[None, None, :],
            mask=inside[:, :, None] & (dims < H)[None, None, :],
            other=0.0,
        )
        if IDW:
            direction -= key[:, None, :]
        total += weight[:, :, None] * direction
        if TOTALS:
            strengths += tl.load(STRENGTHS + pair, mask=inside, other=0.0)
    sums, totals = tl.sum(total, 1), tl.sum(strengths, 1)
    # Each block of h has totals of its own: a program reads what its own group has stored.
    own_totals = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * ROWS
    if LAST:
        tiles = tl.maximum(tl.cdiv(end - start, TILE), 1)
        last = tl.max(((begin >= start) & ((begin - start) // TILE < tiles)).to(tl.int32), 0) > 0
        if tl.max(tiles, 0) > 1:
            if last:
                _store_tile(PARTIALS, PARTIAL_TOTALS, own_totals, number, sums, totals, begin < stop, dims, H, TOTALS)
                ticket = TICKETS + tl.max(segment, 0) * tl.num_programs(1) + tl.program_id(1)
                last = is_last(ticket, tl.max(tiles, 0).to(tl.int32))
            if last:
                head = start // TILE + segment
                zero = tl.zeros([ROWS], key.dtype)
                sums, totals = _sum_tiles(
                    PARTIALS, PARTIAL_TOTALS, own_totals, head, head + tiles, dims, zero, H, LOADS, TOTALS
                )
        if last:
            _store_sub_keys(
                sums, totals, BASE, OUT, LENGTHS, segment, segment < SEGMENTS, dims, H, ADDED, TOTALS, MEASURED
            )
    else:
        _store_tile(PARTIALS, PARTIAL_TOTALS, own_totals, number, sums, totals, begin < stop, dims, H, TOTALS)


@triton.jit(do_not_specialize=["first_key"])
def finish_kernel(
    BASE,  # [G, n', h]; unused without ADDED
    STARTS,
    PARTIALS,  # [tiles, h]
    PARTIAL_TOTALS,  # [blocks of h, tiles]: the first block's is read
    OUT,  # [G, n', h] out
    LENGTHS,  # [G, n'] out: of OUT; unused without MEASURED, for which a program has all of h
    first_key,
    COUNT: tl.constexpr,
    N: tl.constexpr,
    SEGMENTS: tl.constexpr,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    LOADS: tl.constexpr,
    ADDED: tl.constexpr,
    TOTALS: tl.constexpr,
    MEASURED: tl.constexpr,
):
    """base * (1 + total) - sum, from the sums of sub-keys' tiles. Grid: (blocks of ROWS sub-keys, blocks of h)."""
    segment = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = segment < SEGMENTS
    place = segment // COUNT * N + first_key + segment % COUNT
    start = tl.load(STARTS + place, mask=real, other=0)
    stop = tl.load(STARTS + place + 1, mask=real, other=0)
    first = start // TILE + segment
    last = first + (stop - start + TILE - 1) // TILE
    dims = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros([ROWS], OUT.dtype.element_ty)
    sums, totals = _sum_tiles(PARTIALS, PARTIAL_TOTALS, 0, first, last, dims, zero, H, LOADS, TOTALS)
    _store_sub_keys(sums, totals, BASE, OUT, LENGTHS, segment, real, dims, H, ADDED, TOTALS, MEASURED)
