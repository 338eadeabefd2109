# mypy: disable-error-code="no-untyped-def"
"""Kernels of the block around a memory: gate, mixture and norm of what the memory returned, and the sum at the end.

Symbols (README.md): N tokens | H columns of the hidden state | D columns of the values on this process | P programs
that add up rows.

They are built as those of `block_kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .block_kernels import add_partials, load_row, load_scale


@triton.jit
def mix_row(READS, VALUES, GATES, row, columns, inside, D: tl.constexpr):
    """g r + (1 - g) v of one token, or r + v without gates; then r - v and g."""
    read = load_row(READS, row, columns, inside, D)
    value = load_row(VALUES, row, columns, inside, D)
    if GATES is None:
        gate = 1.0
        mixed = read + value
    else:
        gate = tl.load(GATES + row)
        mixed = value + gate * (read - value)
    return mixed, read - value, gate


@triton.jit
def mixture_square_kernel(
    READS,  # [N, D] what the memory returned
    VALUES,  # [N, D]
    GATES,  # [N] or None
    SQUARES,  # [N] out
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """This process's part of the squared norm of a token's mixture. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mixed, _, _ = mix_row(READS, VALUES, GATES, row, columns, columns < D, D)
    tl.store(SQUARES + row, tl.sum(mixed * mixed, 0))


@triton.jit
def inverse_rms(mixed, SQUARES, row, TOTAL: tl.constexpr, EPS: tl.constexpr):
    """What the norm multiplies a row by."""
    if SQUARES is None:
        square = tl.sum(mixed * mixed, 0)
    else:
        square = tl.load(SQUARES + row)
    return tl.rsqrt(square / TOTAL + EPS)


@triton.jit
def mix_reads_kernel(
    READS,  # [N, D]
    VALUES,  # [N, D]
    GATES,  # [N] or None
    WEIGHT,  # [D] of the norm
    SQUARES,  # [N] over all columns, or None when these are all
    OUT,  # [N, D] out
    D: tl.constexpr,
    TOTAL: tl.constexpr,  # columns of all processes
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The normalised mixture of one token. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    mixed, _, _ = mix_row(READS, VALUES, GATES, row, columns, inside, D)
    normalized = mixed * inverse_rms(mixed, SQUARES, row, TOTAL, EPS)
    tl.store(OUT + row * D + columns, normalized * load_scale(WEIGHT, columns, inside), mask=inside)


@triton.jit
def mixture_product_kernel(
    READS,  # [N, D]
    VALUES,  # [N, D]
    GATES,  # [N] or None
    WEIGHT,  # [D]
    GRAD_OUT,  # [N, D]
    PRODUCTS,  # [N] out: gradient of the normalised row times the row
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """This process's part of what the norm's gradient needs of a token. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    mixed, _, _ = mix_row(READS, VALUES, GATES, row, columns, inside, D)
    grad = load_row(GRAD_OUT, row, columns, inside, D) * load_scale(WEIGHT, columns, inside)
    tl.store(PRODUCTS + row, tl.sum(grad * mixed, 0))


@triton.jit(do_not_specialize=["rows", "rows_each"])
def mix_reads_backward_kernel(
    READS,  # [N, D]
    VALUES,  # [N, D]
    GATES,  # [N] or None
    WEIGHT,  # [D]
    SQUARES,  # [N] over all columns, or None
    PRODUCTS,  # [N] over all columns, or None
    GRAD_OUT,  # [N, D]
    GRAD_READS,  # [N, D] out
    GRAD_VALUES,  # [N, D] out; None without gates, for it is that of the reads
    GRAD_GATES,  # [N] out: this process's part
    PARTIALS,  # [P, D] out: sums over tokens of gradient * normalised
    rows,
    rows_each,
    D: tl.constexpr,
    TOTAL: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of reads, values and gates, and this program's part of the weight's. Grid: P."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    weight_sum = tl.zeros([BLOCK], PARTIALS.dtype.element_ty)
    first = program * rows_each
    for number in tl.range(0, tl.minimum(rows_each, rows - first).to(tl.int32)):
        row = first + number
        mixed, difference, gate = mix_row(READS, VALUES, GATES, row, columns, inside, D)
        scale = inverse_rms(mixed, SQUARES, row, TOTAL, EPS)
        grad = load_row(GRAD_OUT, row, columns, inside, D)
        weight_sum += grad * mixed * scale
        grad *= load_scale(WEIGHT, columns, inside)
        if PRODUCTS is None:
            product = tl.sum(grad * mixed, 0)
        else:
            product = tl.load(PRODUCTS + row)
        grad = scale * (grad - mixed * (product * scale * scale / TOTAL))
        tl.store(GRAD_READS + row * D + columns, gate * grad, mask=inside)
        if GATES is not None:
            tl.store(GRAD_VALUES + row * D + columns, (1.0 - gate) * grad, mask=inside)
            tl.store(GRAD_GATES + row, tl.sum(grad * difference, 0))
    tl.store(PARTIALS + program * D + columns, weight_sum, mask=inside)


@triton.jit(do_not_specialize=["programs"])
def finish_mixture_kernel(
    PARTIALS,  # [P, D]
    GRAD_WEIGHT,  # [D] out
    programs,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of the norm's weight. Grid: ceil(D / COLUMNS)."""
    first = tl.program_id(0) * COLUMNS
    columns = first + tl.arange(0, COLUMNS)
    tl.store(GRAD_WEIGHT + columns, add_partials(PARTIALS, 0, 1, programs, first, D, COLUMNS), mask=columns < D)


@triton.jit
def add_output_kernel(
    RESIDUAL,  # [N, H] hidden state
    PROJECTED,  # [N, H] what the output was projected to
    BIAS,  # [H]
    OUT,  # [N, H] out
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Their sum for one token. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < H
    total = load_row(RESIDUAL, row, columns, inside, H) + load_row(PROJECTED, row, columns, inside, H)
    tl.store(OUT + row * H + columns, total + load_row(BIAS, 0, columns, inside, H), mask=inside)
