"""The kernels of the block as the compile gate compiles them.

In bfloat16 for the paper's shape, without and with columns spread over processes; in float32 for the widest rows, which
need most registers; and in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...kernel_forms import KernelVariant, variant_of
from . import block_kernels, mixture_kernels
from .block_forms import row_form

_SUMS = ("SUMS", "GRAD_SUMS", "SQUARES", "PRODUCTS")
"""What a kernel is given where columns are spread over processes."""
_ACTIVATIONS = (
    *("X", "GRAD_X", "GRAD_RESIDUAL", "QUERIES", "GRAD_QUERIES", "OUT", "GRAD_OUT", "VALUES", "GRAD_VALUES"),
    *(f"{grad}{name}WEIGHT" for grad in ("", "GRAD_") for name in ("", "QUERY_", "VALUE_", "GATE_")),
    *(f"{grad}GATE_{name}" for grad in ("", "GRAD_") for name in ("ROW", "BIAS")),
    *("RESIDUAL", "PROJECTED", "BIAS"),
)
"""Pointers in the dtype of activations and parameters; in float32 are those that a memory or a sum has."""
_OF_MEMORY = ("READS", "GRAD_READS", "VALUES", "GRAD_VALUES")
_ROWS = ("GRAD_X", "QUERIES", "STANDARD", "GRAD_VALUES", "OUT")
"""Whole rows that a kernel may store; the others store numbers."""


def _variants(kernels: tuple[Any, ...], width: int, dtype: str, spread: bool, *of_memory: str) -> list[KernelVariant]:
    """Kernels for rows of `width` columns in `dtype`, but for the pointers `of_memory`."""
    absent = frozenset() if spread else frozenset(_SUMS)
    sums = "*fp64" if dtype == "fp64" else "*fp32"
    found = []
    for kernel in kernels:
        form = row_form(kernel, width, absent, TOTAL=2 * width if spread else width, EPS=1e-5)
        types = {name: sums for name in form.parameters if name.isupper()}
        types |= {name: f"*{dtype}" for name in _ACTIVATIONS if name in types and name not in of_memory}
        name = kernel.fn.__name__.removesuffix("_kernel").replace("_", " ")
        label = f"block, {name} {dtype} D={width}" + (" spread" if spread else "")
        moves_rows = dtype != "fp64" and any(name in form.parameters for name in _ROWS)
        variant = variant_of(label, form, types, moves_rows=moves_rows)
        found.append(replace(variant, may_spill=dtype == "fp64"))
    return found


def _whole_rows(hidden: int, columns: int, dtype: str) -> list[KernelVariant]:
    """What one process launches that has all columns."""
    hidden_kernels = (
        block_kernels.normalize_hidden_kernel,
        block_kernels.normalize_hidden_backward_kernel,
        block_kernels.finish_hidden_kernel,
        mixture_kernels.add_output_kernel,
    )
    standard_kernels = (block_kernels.standardize_kernel, block_kernels.standardize_backward_kernel)
    mixture = (
        mixture_kernels.mix_reads_kernel,
        mixture_kernels.mix_reads_backward_kernel,
        mixture_kernels.finish_mixture_kernel,
    )
    return [
        *_variants(hidden_kernels, hidden, dtype, False),
        *_variants(standard_kernels, columns, dtype, False),
        *_variants(mixture, columns, dtype, False, *_OF_MEMORY),
    ]


def _spread_rows(columns: int, dtype: str) -> list[KernelVariant]:
    """What is launched for columns spread over processes."""
    standard = (
        block_kernels.moments_kernel,
        block_kernels.standardize_kernel,
        block_kernels.standard_moments_kernel,
        block_kernels.standardize_backward_kernel,
    )
    mixture = (
        mixture_kernels.mixture_square_kernel,
        mixture_kernels.mix_reads_kernel,
        mixture_kernels.mixture_product_kernel,
        mixture_kernels.mix_reads_backward_kernel,
    )
    return [*_variants(standard, columns, dtype, True), *_variants(mixture, columns, dtype, True, *_OF_MEMORY)]


KERNEL_VARIANTS = (
    *_whole_rows(768, 512, "bf16"),
    *_spread_rows(256, "bf16"),
    *_whole_rows(4096, 4096, "fp32"),
    *(replace(variant, slow=True) for variant in _whole_rows(768, 512, "fp16")),
    *(replace(variant, slow=True) for variant in _whole_rows(768, 512, "fp64")),
)
