"""The steps of the block around a memory in kernels, differentiable.

One launch each way for each step, and one more for the gradients of the weights; where columns are spread over
processes, one more each way for what crosses them. Backward is given the inputs of the step and what has one number per
token: rows are normalised anew. Nothing is decided on the host, and the same inputs give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...kernel_forms import aligned, cdiv
from ...sharding import ColumnSums
from ..block_steps import BlockSteps
from ..block_types import BlockInputs, NormWeights, StandardValues
from . import block_kernels, mixture_kernels
from .block_forms import COLUMNS, PROGRAMS, launch_rows


def _sum_type(x: Tensor) -> torch.dtype:
    """In what the kernels compute."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rows_each(rows: int) -> tuple[int, int]:
    """Rows of a program that adds them up, and the number of such programs."""
    each = max(1, cdiv(rows, PROGRAMS))
    return each, cdiv(rows, each)


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient as the kernels read it; zeros for an output that nobody used."""
    return torch.zeros_like(like) if gradient is None else aligned(gradient)


class _NormalizeHidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, dtype: torch.dtype, *weights: Tensor | None) -> tuple[Any, ...]:
        """Residual, inputs of both projections, and gates."""
        ctx.set_materialize_grads(False)
        whole, weighs = aligned(x), NormWeights(*weights)  # type: ignore[arg-type]
        queries, values = torch.empty_like(whole), torch.empty_like(whole)
        gates = None if weighs.gate is None else whole.new_empty(*x.shape[:-1], 1, dtype=dtype)
        tensors = {
            "X": whole, "QUERY_WEIGHT": weighs.query, "VALUE_WEIGHT": weighs.value, "GATE_WEIGHT": weighs.gate,
            "GATE_ROW": weighs.gate_row, "GATE_BIAS": weighs.gate_bias,
            "QUERIES": queries, "VALUES": values, "GATES": gates,
        }  # fmt: skip
        width = x.shape[-1]
        launch_rows(block_kernels.normalize_hidden_kernel, x.numel() // width, width, tensors, {}, EPS=eps)
        ctx.eps = eps
        ctx.save_for_backward(whole, gates, *weights)
        return x.view_as(x), queries, values, gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of the hidden state and of the weights."""
        x, gates, *weights = ctx.saved_tensors
        weighs, width = NormWeights(*weights), x.shape[-1]
        residual, queries, values, grad_gates = gradients
        each, programs = _rows_each(x.numel() // width)
        grad_x, sums = torch.empty_like(x), _sum_type(x)
        tensors = {
            "X": x, "QUERY_WEIGHT": weighs.query, "VALUE_WEIGHT": weighs.value, "GATE_WEIGHT": weighs.gate,
            "GATE_ROW": weighs.gate_row, "GATES": gates, "GRAD_QUERIES": _or_zeros(queries, x),
            "GRAD_VALUES": _or_zeros(values, x), "GRAD_GATES": None if gates is None else _or_zeros(grad_gates, gates),
            "GRAD_RESIDUAL": None if residual is None else aligned(residual), "GRAD_X": grad_x,
            "PARTIALS": x.new_empty(programs, 3, width, dtype=sums), "BIAS_PARTIALS": x.new_empty(programs, dtype=sums),
        }  # fmt: skip
        numbers = {"rows": x.numel() // width, "rows_each": each, "programs": programs}
        kernel = block_kernels.normalize_hidden_backward_kernel
        launch_rows(kernel, programs, width, tensors, numbers, EPS=ctx.eps)
        found = [None if weight is None else torch.empty_like(weight) for weight in weights]
        names = ("QUERY_WEIGHT", "VALUE_WEIGHT", "GATE_WEIGHT", "GATE_ROW", "GATE_BIAS")
        tensors |= {f"GRAD_{name}": gradient for name, gradient in zip(names, found, strict=True)}
        launch_rows(block_kernels.finish_hidden_kernel, cdiv(width, COLUMNS), width, tensors, numbers)
        return grad_x, None, None, *found


class _StandardizeValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dtype: torch.dtype, columns: ColumnSums) -> tuple[Tensor, Tensor]:
        """The z-scores twice."""
        ctx.set_materialize_grads(False)
        values = aligned(values)
        standard, width = torch.empty_like(values, dtype=dtype), values.shape[-1]
        rows, sums = values.numel() // width, None
        tensors = {"VALUES": values, "STANDARD": standard}
        if columns.size > 1:
            sums = values.new_empty(rows, 2, dtype=_sum_type(values))
            launch_rows(block_kernels.moments_kernel, rows, width, tensors | {"SUMS": sums}, {})
            sums = columns.sum_shards(sums)
        launch_rows(
            block_kernels.standardize_kernel, rows, width, tensors | {"SUMS": sums}, {}, TOTAL=columns.num_columns
        )
        ctx.save_for_backward(values, sums)
        ctx.columns = columns
        return standard, standard.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        """Of the values."""
        (values, sums), columns = ctx.saved_tensors, ctx.columns
        some = [aligned(gradient) for gradient in gradients if gradient is not None]
        if not some:
            return None, None, None
        width = values.shape[-1]
        rows, grad_sums, grad_values = values.numel() // width, None, torch.empty_like(values)
        tensors = {
            "VALUES": values, "SUMS": sums, "GRAD_TARGETS": some[0], "GRAD_MIXED": some[1] if len(some) > 1 else None,
            "GRAD_VALUES": grad_values,
        }  # fmt: skip
        kernels, total = block_kernels, columns.num_columns
        if columns.size > 1:
            assert sums is not None
            grad_sums = torch.empty_like(sums)
            known = tensors | {"GRAD_SUMS": grad_sums}
            launch_rows(kernels.standard_moments_kernel, rows, width, known, {}, TOTAL=total)
            grad_sums = columns.sum_shards(grad_sums)
        known = tensors | {"GRAD_SUMS": grad_sums}
        launch_rows(kernels.standardize_backward_kernel, rows, width, known, {}, TOTAL=total)
        return grad_values, None, None


class _MixReads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        reads: Tensor,
        values: Tensor,
        gates: Tensor | None,
        weight: Tensor,
        eps: float,
        dtype: torch.dtype,
        columns: ColumnSums,
    ) -> Tensor:
        """The normalised mixture."""
        reads, values = aligned(reads), aligned(values)
        gates = None if gates is None else aligned(gates)
        out, width = torch.empty_like(reads, dtype=dtype), reads.shape[-1]
        rows, squares = reads.numel() // width, None
        tensors = {"READS": reads, "VALUES": values, "GATES": gates, "WEIGHT": weight, "OUT": out}
        if columns.size > 1:
            squares = reads.new_empty(rows)
            launch_rows(mixture_kernels.mixture_square_kernel, rows, width, tensors | {"SQUARES": squares}, {})
            squares = columns.sum_shards(squares)
        constants = {"TOTAL": columns.num_columns, "EPS": eps}
        launch_rows(mixture_kernels.mix_reads_kernel, rows, width, tensors | {"SQUARES": squares}, {}, **constants)
        ctx.save_for_backward(reads, values, gates, weight, squares)
        ctx.columns, ctx.constants = columns, constants
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of reads, values, gates and the norm's weight."""
        reads, values, gates, weight, squares = ctx.saved_tensors
        columns, width = ctx.columns, reads.shape[-1]
        each, programs = _rows_each(reads.numel() // width)
        grad_reads, grad_weight = torch.empty_like(reads), torch.empty_like(weight)
        grad_values, grad_gates = (None, None) if gates is None else (torch.empty_like(values), torch.empty_like(gates))
        tensors: dict[str, Tensor | None] = {
            "READS": reads, "VALUES": values, "GATES": gates, "WEIGHT": weight, "SQUARES": squares, "PRODUCTS": None,
            "GRAD_OUT": aligned(gradient), "GRAD_READS": grad_reads, "GRAD_VALUES": grad_values,
            "GRAD_GATES": grad_gates, "PARTIALS": reads.new_empty(programs, width), "GRAD_WEIGHT": grad_weight,
        }  # fmt: skip
        numbers = {"rows": reads.numel() // width, "rows_each": each, "programs": programs}
        if columns.size > 1:
            assert squares is not None
            products = torch.empty_like(squares)
            kernel = mixture_kernels.mixture_product_kernel
            launch_rows(kernel, numbers["rows"], width, tensors | {"PRODUCTS": products}, {})
            tensors["PRODUCTS"] = columns.sum_shards(products)
        kernel = mixture_kernels.mix_reads_backward_kernel
        launch_rows(kernel, programs, width, tensors, numbers, **ctx.constants)
        launch_rows(mixture_kernels.finish_mixture_kernel, cdiv(width, COLUMNS), width, tensors, numbers)
        return grad_reads, grad_reads if gates is None else grad_values, grad_gates, grad_weight, None, None, None


class _AddOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, projected: Tensor, bias: Tensor) -> Tensor:
        """The sum, rounded once."""
        width = residual.shape[-1]
        out = torch.empty_like(residual, memory_format=torch.contiguous_format)
        tensors = {"RESIDUAL": aligned(residual), "PROJECTED": aligned(projected), "BIAS": bias, "OUT": out}
        launch_rows(mixture_kernels.add_output_kernel, residual.numel() // width, width, tensors, {})
        ctx.dtypes = projected.dtype, bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for residual and output."""
        projected, bias = ctx.dtypes
        return gradient, gradient.to(projected), gradient.flatten(0, -2).sum(0).to(bias)


def normalize_hidden(x: Tensor, weights: NormWeights, eps: float, dtype: torch.dtype) -> BlockInputs:
    """As in `block_in_torch`, but for the gate's linear layer, whose product is not rounded to the dtype of `x`."""
    return BlockInputs(*_NormalizeHidden.apply(x, eps, dtype, *weights))


def standardize_values(values: Tensor, dtype: torch.dtype, columns: ColumnSums) -> StandardValues:
    """As in `block_in_torch`."""
    return StandardValues(*_StandardizeValues.apply(values, dtype, columns))


def mix_reads(
    reads: Tensor,
    values: Tensor,
    gates: Tensor | None,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype,
    columns: ColumnSums,
) -> Tensor:
    """As in `block_in_torch`."""
    return _MixReads.apply(reads, values, gates, weight, eps, dtype, columns)


def add_output(residual: Tensor, projected: Tensor, bias: Tensor) -> Tensor:
    """As in `block_in_torch`."""
    return _AddOutput.apply(residual, projected, bias)


TRITON_STEPS = BlockSteps(normalize_hidden, standardize_values, mix_reads, add_output)
"""In kernels."""
