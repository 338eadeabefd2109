# mypy: disable-error-code="no-untyped-def"
"""Kernels of the block around a memory: norms and gate, z-score, mixture.

Symbols (README.md): N tokens | H columns of the hidden state | D columns of the values on this process | P programs
that add up rows.

A program holds a row whole and computes in float32 (float64 for float64). Sums over tokens have an order: every program
adds its rows one after the other, then one kernel adds what the programs have. Where columns are spread over processes,
a row's sums are given to the kernel, and are computed by a kernel before; otherwise it computes them itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

TILE: tl.constexpr = tl.constexpr(32)
"""Programs whose sums are added at once."""


@triton.jit
def load_row(ROWS, row, columns, inside, D: tl.constexpr):
    """A row in the dtype of arithmetic."""
    loaded = tl.load(ROWS + row * D + columns, mask=inside, other=0.0)
    if loaded.dtype != tl.float64:
        loaded = loaded.to(tl.float32)
    return loaded


@triton.jit
def load_scale(WEIGHT, columns, inside):
    """1 + weight of a norm in the dtype of arithmetic."""
    return 1.0 + load_row(WEIGHT, 0, columns, inside, 0)


@triton.jit
def add_partials(PARTIALS, part, parts, programs, first_column, D: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum over programs of one part of what they have, [P, parts, D], for COLUMNS columns."""
    columns = first_column + tl.arange(0, COLUMNS)[None, :]
    rows = tl.arange(0, TILE).to(tl.int64)[:, None]
    total = tl.zeros([TILE, COLUMNS], PARTIALS.dtype.element_ty)
    for first in tl.range(0, programs, TILE):
        address = PARTIALS + ((first + rows) * parts + part) * D + columns
        total += tl.load(address, mask=(first + rows < programs) & (columns < D), other=0.0)
    return tl.sum(total, 0)


@triton.jit
def normalize_hidden_kernel(
    X,  # [N, H] hidden state
    QUERY_WEIGHT,  # [H] of the norm before the queries
    VALUE_WEIGHT,  # [H]
    GATE_WEIGHT,  # [H] of the norm before the gate, or None
    GATE_ROW,  # [1, H] of the gate's linear layer
    GATE_BIAS,  # [1]
    QUERIES,  # [N, H] out: what queries are projected from
    VALUES,  # [N, H] out: what values are projected from
    GATES,  # [N] out
    H: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The norms of one token, and its gate. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < H
    x = load_row(X, row, columns, inside, H)
    normalized = x * tl.rsqrt(tl.sum(x * x, 0) / H + EPS)
    tl.store(QUERIES + row * H + columns, normalized * load_scale(QUERY_WEIGHT, columns, inside), mask=inside)
    tl.store(VALUES + row * H + columns, normalized * load_scale(VALUE_WEIGHT, columns, inside), mask=inside)
    if GATE_WEIGHT is not None:
        strength = load_scale(GATE_WEIGHT, columns, inside) * load_row(GATE_ROW, 0, columns, inside, H)
        logit = tl.sum(normalized * strength, 0) + tl.load(GATE_BIAS).to(normalized.dtype)
        tl.store(GATES + row, tl.sigmoid(logit))


@triton.jit(do_not_specialize=["rows", "rows_each"])
def normalize_hidden_backward_kernel(
    X,  # [N, H]
    QUERY_WEIGHT,  # [H]
    VALUE_WEIGHT,  # [H]
    GATE_WEIGHT,  # [H] or None
    GATE_ROW,  # [1, H]
    GATES,  # [N]
    GRAD_QUERIES,  # [N, H]
    GRAD_VALUES,  # [N, H]
    GRAD_GATES,  # [N]
    GRAD_RESIDUAL,  # [N, H] what else is added to the gradient of X, or None
    GRAD_X,  # [N, H] out
    PARTIALS,  # [P, 3, H] out: sums over tokens of gradient * normalised, of queries, values and the gate's logit
    BIAS_PARTIALS,  # [P] out: of the logit's gradient
    rows,
    rows_each,
    H: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the hidden state, and this program's part of the weights'. Grid: P."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < H
    query_sum = tl.zeros([BLOCK], PARTIALS.dtype.element_ty)
    value_sum = tl.zeros([BLOCK], PARTIALS.dtype.element_ty)
    gate_sum = tl.zeros([BLOCK], PARTIALS.dtype.element_ty)
    bias_sum = tl.zeros([], PARTIALS.dtype.element_ty)
    first = program * rows_each
    for number in tl.range(0, tl.minimum(rows_each, rows - first).to(tl.int32)):
        row = first + number
        x = load_row(X, row, columns, inside, H)
        scale = tl.rsqrt(tl.sum(x * x, 0) / H + EPS)
        normalized = x * scale
        grad = load_row(GRAD_QUERIES, row, columns, inside, H)
        query_sum += grad * normalized
        grad_normalized = grad * load_scale(QUERY_WEIGHT, columns, inside)
        grad = load_row(GRAD_VALUES, row, columns, inside, H)
        value_sum += grad * normalized
        grad_normalized += grad * load_scale(VALUE_WEIGHT, columns, inside)
        if GATE_WEIGHT is not None:
            gate = tl.load(GATES + row)
            grad_logit = tl.load(GRAD_GATES + row) * gate * (1.0 - gate)
            gate_sum += grad_logit * normalized
            bias_sum += grad_logit
            strength = load_scale(GATE_WEIGHT, columns, inside) * load_row(GATE_ROW, 0, columns, inside, H)
            grad_normalized += grad_logit * strength
        grad_x = scale * (grad_normalized - normalized * (tl.sum(grad_normalized * normalized, 0) / H))
        if GRAD_RESIDUAL is not None:
            grad_x += load_row(GRAD_RESIDUAL, row, columns, inside, H)
        tl.store(GRAD_X + row * H + columns, grad_x, mask=inside)
    sums = PARTIALS + program * 3 * H + columns
    tl.store(sums, query_sum, mask=inside)
    tl.store(sums + H, value_sum, mask=inside)
    if GATE_WEIGHT is not None:
        tl.store(sums + 2 * H, gate_sum, mask=inside)
        tl.store(BIAS_PARTIALS + program, bias_sum)


@triton.jit(do_not_specialize=["programs"])
def finish_hidden_kernel(
    PARTIALS,  # [P, 3, H]
    BIAS_PARTIALS,  # [P]
    GATE_WEIGHT,  # [H] or None
    GATE_ROW,  # [1, H]
    GRAD_QUERY_WEIGHT,  # [H] out
    GRAD_VALUE_WEIGHT,  # [H] out
    GRAD_GATE_WEIGHT,  # [H] out
    GRAD_GATE_ROW,  # [1, H] out
    GRAD_GATE_BIAS,  # [1] out
    programs,
    H: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of the norms' weights and of the gate's linear layer. Grid: ceil(H / COLUMNS)."""
    first = tl.program_id(0) * COLUMNS
    columns = first + tl.arange(0, COLUMNS)
    inside = columns < H
    total = add_partials(PARTIALS, 0, 3, programs, first, H, COLUMNS)
    tl.store(GRAD_QUERY_WEIGHT + columns, total, mask=inside)
    total = add_partials(PARTIALS, 1, 3, programs, first, H, COLUMNS)
    tl.store(GRAD_VALUE_WEIGHT + columns, total, mask=inside)
    if GATE_WEIGHT is not None:
        total = add_partials(PARTIALS, 2, 3, programs, first, H, COLUMNS)
        tl.store(GRAD_GATE_WEIGHT + columns, total * load_row(GATE_ROW, 0, columns, inside, H), mask=inside)
        tl.store(GRAD_GATE_ROW + columns, total * load_scale(GATE_WEIGHT, columns, inside), mask=inside)
        if tl.program_id(0) == 0:
            tl.store(GRAD_GATE_BIAS + tl.arange(0, 1), add_partials(BIAS_PARTIALS, 0, 1, programs, 0, 1, 1))


@triton.jit
def moments_kernel(
    VALUES,  # [N, D]
    SUMS,  # [N, 2] out: sum and sum of squares
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """This process's part of what the z-score needs of a token. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    x = load_row(VALUES, row, columns, columns < D, D)
    tl.store(SUMS + 2 * row, tl.sum(x, 0))
    tl.store(SUMS + 2 * row + 1, tl.sum(x * x, 0))


@triton.jit
def centre_row(VALUES, SUMS, row, columns, inside, D: tl.constexpr, TOTAL: tl.constexpr):
    """A row minus its mean over all columns, and its unbiased standard deviation."""
    x = load_row(VALUES, row, columns, inside, D)
    if SUMS is None:
        centred = tl.where(inside, x - tl.sum(x, 0) / TOTAL, 0.0)
        squares = tl.sum(centred * centred, 0)
    else:
        mean = tl.load(SUMS + 2 * row) / TOTAL
        centred = x - mean  # beyond the columns, too, where every gradient is 0
        squares = tl.maximum(tl.load(SUMS + 2 * row + 1) - TOTAL * mean * mean, 0.0)
    return centred, tl.sqrt(squares / (TOTAL - 1))


@triton.jit
def standardize_kernel(
    VALUES,  # [N, D]
    SUMS,  # [N, 2] over all columns, or None when these are all
    STANDARD,  # [N, D] out: z-scores
    D: tl.constexpr,
    TOTAL: tl.constexpr,  # columns of all processes
    BLOCK: tl.constexpr,
):
    """z-scores of one token. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    centred, deviation = centre_row(VALUES, SUMS, row, columns, inside, D, TOTAL)
    tl.store(STANDARD + row * D + columns, centred / (deviation + 1e-6), mask=inside)


@triton.jit
def load_standard_gradient(GRAD_TARGETS, GRAD_MIXED, row, columns, inside, D: tl.constexpr):
    """Sum of the gradients of both uses of a row of z-scores."""
    grad = load_row(GRAD_TARGETS, row, columns, inside, D)
    if GRAD_MIXED is not None:
        grad += load_row(GRAD_MIXED, row, columns, inside, D)
    return grad


@triton.jit
def standard_moments_kernel(
    VALUES,  # [N, D]
    SUMS,  # [N, 2] over all columns
    GRAD_TARGETS,  # [N, D]
    GRAD_MIXED,  # [N, D] or None
    GRAD_SUMS,  # [N, 2] out: sum of the gradient, and of its product with the centred row
    D: tl.constexpr,
    TOTAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """This process's part of what the z-score's gradient needs of a token. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    centred, deviation = centre_row(VALUES, SUMS, row, columns, inside, D, TOTAL)
    grad = load_standard_gradient(GRAD_TARGETS, GRAD_MIXED, row, columns, inside, D)
    tl.store(GRAD_SUMS + 2 * row, tl.sum(grad, 0))
    tl.store(GRAD_SUMS + 2 * row + 1, tl.sum(grad * centred, 0))


@triton.jit
def standardize_backward_kernel(
    VALUES,  # [N, D]
    SUMS,  # [N, 2] over all columns, or None
    GRAD_TARGETS,  # [N, D]
    GRAD_MIXED,  # [N, D] or None
    GRAD_SUMS,  # [N, 2] over all columns, or None
    GRAD_VALUES,  # [N, D] out
    D: tl.constexpr,
    TOTAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of one token's values. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    centred, deviation = centre_row(VALUES, SUMS, row, columns, inside, D, TOTAL)
    grad = load_standard_gradient(GRAD_TARGETS, GRAD_MIXED, row, columns, inside, D)
    if GRAD_SUMS is None:
        grad_sum = tl.sum(grad, 0)
        product = tl.sum(grad * centred, 0)
    else:
        grad_sum = tl.load(GRAD_SUMS + 2 * row)
        product = tl.load(GRAD_SUMS + 2 * row + 1)
    scale = 1.0 / (deviation + 1e-6)
    # Where all columns are alike the deviation has no slope.
    spread = tl.where(deviation > 0, (TOTAL - 1) * deviation, 1.0)
    slope = tl.where(deviation > 0, product * scale * scale / spread, 0.0)
    tl.store(GRAD_VALUES + row * D + columns, scale * (grad - grad_sum / TOTAL) - slope * centred, mask=inside)
