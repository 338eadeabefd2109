"""The steps of the block around a memory, and which implementation takes them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..sharding import ColumnSums
from .block_in_torch import add_output, mix_reads, normalize_hidden, standardize_values
from .block_types import BlockInputs, NormWeights, StandardValues

MAX_WIDTH = 4096
"""Most columns of the hidden state, or of one process's values, that the kernels take: a program holds rows whole."""


class _NormalizeHidden(Protocol):
    def __call__(self, x: Tensor, weights: NormWeights, eps: float, dtype: torch.dtype) -> BlockInputs: ...


class _StandardizeValues(Protocol):
    def __call__(self, values: Tensor, dtype: torch.dtype, columns: ColumnSums) -> StandardValues: ...


class _MixReads(Protocol):
    def __call__(
        self,
        reads: Tensor,
        values: Tensor,
        gates: Tensor | None,
        weight: Tensor,
        eps: float,
        dtype: torch.dtype,
        columns: ColumnSums,
    ) -> Tensor: ...


class _AddOutput(Protocol):
    def __call__(self, residual: Tensor, projected: Tensor, bias: Tensor) -> Tensor: ...


class BlockSteps(NamedTuple):
    """One implementation of the block; the arguments are those of the functions of `block_in_torch`.

    Attributes:
        normalize_hidden: from the hidden state to what the projections read, and the gates.
        standardize_values: from projected values to z-scores.
        mix_reads: from what the memory returned to what the output is projected from.
        add_output: the hidden state plus the projected output.
    """

    normalize_hidden: _NormalizeHidden
    standardize_values: _StandardizeValues
    mix_reads: _MixReads
    add_output: _AddOutput


TORCH_STEPS = BlockSteps(normalize_hidden, standardize_values, mix_reads, add_output)
"""In torch, on any device."""


def block_steps(implementation: str, *widths: int) -> BlockSteps:
    """The steps that go with an implementation of the memory: kernels with `triton`, torch with any other.

    Args:
        implementation: the memory's, by its name.
        widths: columns of the hidden state and of this process's values.
    """
    if implementation != "triton" or max(widths) > MAX_WIDTH:
        return TORCH_STEPS
    # Imported where it runs: triton is missing on most machines without a GPU.
    from .triton.block_functions import TRITON_STEPS

    return TRITON_STEPS
