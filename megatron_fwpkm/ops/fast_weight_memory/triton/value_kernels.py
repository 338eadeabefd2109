# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of the values table: read, write in place, backward per row and per slot.

Symbols (README.md): D columns of the values on this process | E tokens that the pieces of a call write | J slots of a
token: heads * k | P pairs (token, slot) of a call: T * J | S tokens of a call's stream, pending ones first | T tokens
that the pieces of a call read, piece after piece | n sub-keys of a whole list; there are n * n slots.

A launch handles one piece; `first_row` and `first_pair` say where its rows (tokens) and pairs begin. Plans are those of
`write_plan.py`; all index tensors are int64, so addresses are 64-bit.

Grids are worst cases: a program that has nothing to do leaves at once. Columns are cut into blocks of BLOCK, over
`program_id(1)`. A segment is summed in tiles of at most TILE pairs, in the order of its rows, and the partial sums of a
long one are added in the order of the tiles by the program that finishes last (`is_last`). The result depends neither
on the order in which programs run nor on their number, and a slot that everybody reads costs no more than others.
Triton's interpreter cannot combine a scalar condition with a mask, so such masks compare with a width of D or 0.

Arithmetic is in the dtype of the slot weights (float32; float64 in tests). A bfloat16 table and its log come as int16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .last_program import is_last, load_partials
from .row_bits import float_to_row, row_to_float

TILE = 32
"""Most pairs that one program sums."""


@triton.jit
def partial_row(position, first_pair, head, TILE: tl.constexpr):
    """Row of the scratch for a tile of a long segment.

    Of TILE consecutive positions at most one starts the first tile of a long segment and at most one a later tile, so
    2 * ceil(P / TILE) rows are enough.
    """
    return (position - first_pair) // TILE * 2 + (position == head).to(tl.int64)


@triton.jit
def sum_of_tiles(
    total, PARTIALS, TICKETS, position, head, length, first_pair, columns, inside, D: tl.constexpr, TILE: tl.constexpr
):
    """Whether this program is the last of its long segment, and the sum of all tiles in their order, if it is.

    `total` is the sum of the tile that begins at `position`.
    """
    row = partial_row(position, first_pair, head, TILE)
    tl.store(PARTIALS + row * D + columns, total, mask=inside)
    ticket = TICKETS + (head - first_pair) // TILE * tl.num_programs(1) + tl.program_id(1)
    tiles = tl.cdiv(length, TILE).to(tl.int32)
    last = is_last(ticket, tiles)
    if last:
        row = partial_row(head, first_pair, head, TILE)
        total = load_partials(PARTIALS + row * D + columns, inside)
        for tile in tl.range(1, tiles, loop_unroll_factor=4):
            row = partial_row(head + tile * TILE, first_pair, head, TILE)
            total += load_partials(PARTIALS + row * D + columns, inside)
    return last, total


@triton.jit(
    do_not_specialize=["first_row", "first_kept", "first_read", "written", "first_token", "shift", "first_error"]
)
def read_rows_kernel(
    TABLE,  # [n * n, D]
    PAIR_SLOTS,  # [T, J] slot of every pair
    WEIGHTS,  # [T, J] slot weights a
    TARGETS,  # [S, D] targets v
    WRITE_WEIGHTS,  # [S] write weights w
    READS,  # [returned rows, D] out: r
    ERRORS,  # [E, D] out: e = r - v
    SQUARES,  # [E, blocks] out: w * sum of e^2 over the block's columns
    first_row,
    first_kept,  # the piece's rows from this one on are returned ...
    first_read,  # ... and begin here in READS
    written,  # the piece's first rows up to this one are written ...
    first_token,  # ... with the weights of the stream rows from here on ...
    shift,  # ... towards the targets of the stream rows this much later ...
    first_error,  # ... and their errors begin here in ERRORS
    D: tl.constexpr,
    J: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """r = sum_j a_j V[s_j] for one row, and in the same pass its error. Grid: (rows of the piece, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < D
    pair = (first_row + row) * J
    read = tl.zeros([BLOCK], WEIGHTS.dtype.element_ty)
    for j in tl.range(0, J, loop_unroll_factor=8):
        slot = tl.load(PAIR_SLOTS + pair + j)
        read += tl.load(WEIGHTS + pair + j) * row_to_float(tl.load(TABLE + slot * D + columns, mask=inside, other=0))
    if row >= first_kept:
        tl.store(READS + (first_read + row - first_kept) * D + columns, read, mask=inside)
    if row < written:
        target = tl.load(TARGETS + (first_token + shift + row) * D + columns, mask=inside, other=0.0)
        error = read - target
        tl.store(ERRORS + (first_error + row) * D + columns, error, mask=inside)
        square = tl.sum(error * error, 0) * tl.load(WRITE_WEIGHTS + first_token + row)
        tl.store(SQUARES + (first_error + row) * tl.num_programs(1) + block, square)


@triton.jit(do_not_specialize=["first_row", "first_pair", "written", "first_token", "first_error", "piece", "write"])
def write_rows_kernel(
    TABLE,  # [n * n, D] in and out
    LOG,  # [P, D] out: rows before the write, at the first position of their segment
    PARTIALS,  # [2 * ceil(pairs of the piece / TILE), D] scratch
    TICKETS,  # [ceil(pairs of the piece / TILE), blocks] int32, zero before and after
    SLOTS,  # [P] row of TABLE at every position
    NAMES,  # [P] slot at every position: another number than the row when backward repeats a write on few rows
    HEADS,  # [P]
    LENGTHS,  # [P]
    COUNTS,  # [P]
    ORDER,  # [P] pair at every position
    WEIGHTS,  # [T, J] slot weights a
    WRITE_WEIGHTS,  # [S] write weights w
    ERRORS,  # [E, D] errors e
    SCALES,  # [pieces] step size before the division by a slot's readers
    ROUNDING,  # [3] of a bfloat16 table
    first_row,
    first_pair,
    written,
    first_token,
    first_error,
    piece,
    write,  # number of this write within the call
    D: tl.constexpr,
    J: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    KEEP_LOG: tl.constexpr,
    UPDATE: tl.constexpr,
):
    """V[s] -= scale / c_s * sum of a w e over the pairs of slot s. Grid: (pairs of the piece, blocks).

    Without UPDATE only the log is kept.
    """
    position = first_pair + tl.program_id(0).to(tl.int64)
    head = tl.load(HEADS + position)
    rank = position - head
    if rank % TILE == 0:
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < D
        length = tl.load(LENGTHS + position)
        total = tl.zeros([BLOCK], WEIGHTS.dtype.element_ty)
        if UPDATE:
            for x in tl.range(0, tl.minimum(length - rank, TILE).to(tl.int32), loop_unroll_factor=4):
                pair = tl.load(ORDER + position + x)
                row = pair // J - first_row
                # A row that is read but not written has neither weight nor error.
                is_written = row < written
                weight = tl.load(WEIGHTS + pair) * tl.load(
                    WRITE_WEIGHTS + first_token + row, mask=is_written, other=0.0
                )
                address = ERRORS + (first_error + row) * D + columns
                total += weight * tl.load(address, mask=columns < tl.where(is_written, D, 0), other=0.0)
        if rank == 0 and KEEP_LOG:
            old = tl.load(TABLE + tl.load(SLOTS + position) * D + columns, mask=inside, other=0)
            tl.store(LOG + position * D + columns, old, mask=inside)
        if UPDATE:
            last = length <= TILE
            if length > TILE:
                last, total = sum_of_tiles(
                    total, PARTIALS, TICKETS, position, head, length, first_pair, columns, inside, D, TILE
                )
            if last:
                address = TABLE + tl.load(SLOTS + position) * D + columns
                step = tl.load(SCALES + piece) / tl.load(COUNTS + position).to(SCALES.dtype.element_ty)
                new = row_to_float(tl.load(address, mask=inside, other=0)) - step * total
                new = float_to_row(new, TABLE, ROUNDING, tl.load(NAMES + position), write, BLOCK)
                tl.store(address, new, mask=inside)


@triton.jit(
    do_not_specialize=[
        "first_row", "first_kept", "first_read", "written", "first_token", "shift", "first_error", "piece"
    ]
)  # fmt: skip
def backward_rows_kernel(
    ADJOINT,  # [distinct slots, D] gradient A of the table after the piece
    LOG,  # [P, D] rows before the write
    SOURCES,  # [P] row of ADJOINT of every pair, or -1 for zero
    PLACES,  # [P] row of LOG of every pair
    COUNTS,  # [P]
    WEIGHTS,  # [T, J] slot weights a
    WRITE_WEIGHTS,  # [S] write weights w
    ERRORS,  # [E, D] errors e
    SCALES,  # [pieces]
    GRAD_READS,  # [returned rows, D] dO
    GRAD_ROWS,  # [rows of the piece, D] out: dr
    GRAD_WEIGHTS,  # [T, 2, blocks, J] out: this block's parts of da, of the log and of the adjoint; zeros before
    GRAD_WRITE_WEIGHTS,  # [S, blocks] out: this block's part of dw
    GRAD_TARGETS,  # [S, D] out: dv
    first_row,
    first_kept,
    first_read,
    written,
    first_token,
    shift,
    first_error,
    piece,
    D: tl.constexpr,
    J: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    WRITTEN: tl.constexpr,
):
    """Gradients of one row, each row of table and log loaded once. Grid: (rows of the piece, blocks).

    With alpha = scale / c_s: u = sum_j alpha a_j A[s_j], dw = -<u, e>, dv = w u, dr = dO - w u and
    da_j = <V[s_j], dr> - alpha w <A[s_j], e>. Without WRITTEN (nothing is written, or nobody reads it later) u is 0.
    PAIRS pairs are in registers at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < D
    some = tl.arange(0, PAIRS)
    first = (first_row + row) * J
    gradients = GRAD_WEIGHTS + ((first_row + row) * 2 * tl.num_programs(1) + block) * J
    width = tl.where(row >= first_kept, D, 0)
    address = GRAD_READS + (first_read + row - first_kept) * D + columns
    grad_read = tl.load(address, mask=columns < width, other=0.0)
    if WRITTEN:
        if row < written:
            error = tl.load(ERRORS + (first_error + row) * D + columns, mask=inside, other=0.0)
            weight = tl.load(WRITE_WEIGHTS + first_token + row)
            scale = tl.load(SCALES + piece)
            grad_written = tl.zeros([BLOCK], WEIGHTS.dtype.element_ty)
            for j in tl.range(0, J, PAIRS):
                exists = j + some < J
                source = tl.load(SOURCES + first + j + some, mask=exists, other=-1)
                place = tl.load(PLACES + first + j + some, mask=exists, other=0)
                readers = tl.load(COUNTS + place, mask=exists, other=1)
                step = scale / readers.to(SCALES.dtype.element_ty)
                strength = step * tl.load(WEIGHTS + first + j + some, mask=exists, other=0.0)
                loaded = (source >= 0)[:, None] & inside[None, :]
                pushed = tl.load(ADJOINT + source[:, None] * D + columns[None, :], mask=loaded, other=0.0)
                grad_written += tl.sum(strength[:, None] * pushed, 0)
                dots = tl.sum(pushed * error[None, :], 1)
                # Apart from the part below: other threads than those that store would have to read it back.
                tl.store(gradients + tl.num_programs(1) * J + j + some, -step * weight * dots, mask=exists)
            tl.store(
                GRAD_WRITE_WEIGHTS + (first_token + row) * tl.num_programs(1) + block, -tl.sum(grad_written * error, 0)
            )
            grad_written *= weight
            tl.store(GRAD_TARGETS + (first_token + shift + row) * D + columns, grad_written, mask=inside)
            grad_read -= grad_written
    tl.store(GRAD_ROWS + row * D + columns, grad_read, mask=inside)
    for j in tl.range(0, J, PAIRS):
        exists = j + some < J
        place = tl.load(PLACES + first + j + some, mask=exists, other=0)
        loaded = exists[:, None] & inside[None, :]
        old = row_to_float(tl.load(LOG + place[:, None] * D + columns[None, :], mask=loaded, other=0))
        tl.store(gradients + j + some, tl.sum(old * grad_read[None, :], 1), mask=exists)


@triton.jit(do_not_specialize=["first_row", "first_pair"])
def adjoint_rows_kernel(
    ADJOINT,  # [distinct slots, D] in and out
    PARTIALS,  # [2 * ceil(pairs of the piece / TILE), D] scratch
    TICKETS,  # [ceil(pairs of the piece / TILE), blocks] int32, zero before and after
    SOURCES,  # [P]
    SINKS,  # [P] row of ADJOINT that every pair adds to, or -1 where the sum is not needed
    HEADS,  # [P]
    LENGTHS,  # [P]
    ORDER,  # [P]
    WEIGHTS,  # [T, J] slot weights a
    GRAD_ROWS,  # [rows of the piece, D] dr
    first_row,
    first_pair,
    D: tl.constexpr,
    J: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """A[s] += sum of a dr over the pairs of slot s; the first sum of a slot is stored. Grid: as for the write."""
    position = first_pair + tl.program_id(0).to(tl.int64)
    head = tl.load(HEADS + position)
    rank = position - head
    if rank % TILE == 0:
        first = tl.load(ORDER + position)
        sink = tl.load(SINKS + first)
        if sink >= 0:
            columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
            inside = columns < D
            length = tl.load(LENGTHS + position)
            total = tl.zeros([BLOCK], ADJOINT.dtype.element_ty)
            for x in tl.range(0, tl.minimum(length - rank, TILE).to(tl.int32), loop_unroll_factor=4):
                pair = tl.load(ORDER + position + x)
                row = pair // J - first_row
                gradient = tl.load(GRAD_ROWS + row * D + columns, mask=inside, other=0.0)
                total += tl.load(WEIGHTS + pair) * gradient
            last = length <= TILE
            if length > TILE:
                last, total = sum_of_tiles(
                    total, PARTIALS, TICKETS, position, head, length, first_pair, columns, inside, D, TILE
                )
            if last:
                address = ADJOINT + sink * D + columns
                width = tl.where(tl.load(SOURCES + first) >= 0, D, 0)
                total += tl.load(address, mask=columns < width, other=0.0)
                tl.store(address, total, mask=inside)
