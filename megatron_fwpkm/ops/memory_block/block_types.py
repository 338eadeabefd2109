"""What goes into the steps of the block around a memory, and what comes out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class NormWeights(NamedTuple):
    """Weights of the norms of the hidden state, and of the gate's linear layer.

    Attributes:
        query: [h], of the norm before the projection of queries; like all norms' the distance from 1.
        value: [h], of the norm before the projection of values.
        gate: [h], of the norm before the gate, or None without a gate.
        gate_row: [1, h], of the gate's linear layer.
        gate_bias: [1].
    """

    query: Tensor
    value: Tensor
    gate: Tensor | None = None
    gate_row: Tensor | None = None
    gate_bias: Tensor | None = None


class BlockInputs(NamedTuple):
    """What is made of the hidden state.

    Attributes:
        residual: the hidden state itself, for the sum at the end of the block: its two gradients meet in one step.
        queries: [..., h], of which queries are projected, in the dtype of the hidden state.
        values: [..., h], of which values are projected.
        gates: [..., 1] in the dtype of the memory, or None.
    """

    residual: Tensor
    queries: Tensor
    values: Tensor
    gates: Tensor | None


class StandardValues(NamedTuple):
    """z-scores of the values, the same numbers for each of their two uses: their two gradients meet in one step.

    Attributes:
        targets: what the memory learns.
        mixed: what its reads are mixed with.
    """

    targets: Tensor
    mixed: Tensor
