"""One chunk of a fast SwiGLU: its read, its step of gradient descent, and the derivative of both (see README.md).

M tokens of all sequences, hidden width F. With `sharding` F is a process's part of it, and only the read (and its
derivative along the adjoint) is summed over processes: what follows from the error is then local.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ..sharding import TableSharding
from .mlp_state import FastMLPWeights


class Hidden(NamedTuple):
    """What stands between a query and its read, each [M, F]: gate and up, silu of the gate, and its derivative."""

    gate: Tensor
    up: Tensor
    active: Tensor
    slope: Tensor

    @property
    def product(self) -> Tensor:
        """silu(gate) * up, the input of the down projection."""
        return self.active * self.up


class TokenRows(NamedTuple):
    """What backward knows of the tokens of a chunk."""

    queries: Tensor
    """[M, key_dim]"""
    errors: Tensor
    """[M, value_dim], reads minus targets."""
    coefficients: Tensor
    """[M], what the write multiplied the error with, minus sign included; 0 where nothing was written."""
    grad_reads: Tensor
    """[M, value_dim], gradient of the outer loss with respect to the reads."""


class Adjoints(NamedTuple):
    """Gradients of the outer loss with respect to what a chunk was given."""

    queries: Tensor
    """[M, key_dim], of this process's part of the hidden width."""
    targets: Tensor
    """[M, value_dim]"""
    coefficients: Tensor
    """[M]"""
    weights: FastMLPWeights
    """Without the adjoint of the weights after the write, which goes on as it is."""


def hidden_of(queries: Tensor, weights: FastMLPWeights) -> Hidden:
    """Up to the down projection, from queries [M, key_dim]."""
    gate = F.linear(queries, weights.gate_weight, weights.gate_bias)
    up = F.linear(queries, weights.up_weight, weights.up_bias)
    sigmoid = gate.sigmoid()
    active = gate * sigmoid
    return Hidden(gate, up, active, sigmoid + active * (1 - sigmoid))


def read(hidden: Hidden, weights: FastMLPWeights, sharding: TableSharding | None) -> Tensor:
    """What the MLP returns, [M, value_dim], the same on all processes."""
    return _summed(F.linear(hidden.product, weights.down_weight), sharding) + weights.down_bias


def descent(queries: Tensor, hidden: Hidden, slopes: Tensor, weights: FastMLPWeights) -> FastMLPWeights:
    """What a write adds to the weights.

    Args:
        queries: [M, key_dim].
        hidden: of these queries.
        slopes: [M, value_dim], minus the step size times the derivative of the inner loss with respect to the reads.
        weights: that were read.
    """
    product = slopes @ weights.down_weight
    up, gate = product * hidden.active, product * hidden.up * hidden.slope
    return FastMLPWeights(
        gate.t() @ queries, gate.sum(0), up.t() @ queries, up.sum(0), slopes.t() @ hidden.product, slopes.sum(0)
    )


def adjoints(
    rows: TokenRows, weights: FastMLPWeights, after: FastMLPWeights, sharding: TableSharding | None
) -> Adjoints:
    """Derivative of a chunk's read and write, in closed form.

    A write adds -<after, gradient of the inner loss> times the step size to the outer loss, which is the derivative of
    the inner loss along `after`: `tangent` quantities below. One pass back through both gives everything.

    Args:
        rows: of the chunk.
        weights: that were read.
        after: gradient of the outer loss with respect to the weights after the write.
        sharding: collectives, or None.
    """
    queries, errors, coefficients, grad_reads = rows
    hidden = hidden_of(queries, weights)
    sigmoid = hidden.gate.sigmoid()
    curvature = sigmoid * (1 - sigmoid) * (2 + hidden.gate * (1 - 2 * sigmoid))
    gate_tangent = F.linear(queries, after.gate_weight, after.gate_bias)
    up_tangent = F.linear(queries, after.up_weight, after.up_bias)
    tangent = hidden.slope * gate_tangent * hidden.up + hidden.active * up_tangent
    read_tangent = F.linear(hidden.product, after.down_weight) + F.linear(tangent, weights.down_weight)
    read_tangent = _summed(read_tangent, sharding) + after.down_bias

    scaled = coefficients.unsqueeze(1) * errors  # gradient with respect to the tangent of the reads
    pushed = coefficients.unsqueeze(1) * read_tangent  # and to the errors
    total = grad_reads + pushed
    of_tangent = scaled @ weights.down_weight
    of_product = scaled @ after.down_weight + total @ weights.down_weight
    of_gate_tangent = of_tangent * hidden.slope * hidden.up
    of_up_tangent = of_tangent * hidden.active
    of_gate = of_tangent * (curvature * gate_tangent * hidden.up + hidden.slope * up_tangent)
    of_gate = of_gate + of_product * hidden.slope * hidden.up
    of_up = of_tangent * hidden.slope * gate_tangent + of_product * hidden.active
    of_queries = of_gate_tangent @ after.gate_weight + of_up_tangent @ after.up_weight
    of_queries = of_queries + of_gate @ weights.gate_weight + of_up @ weights.up_weight
    of_weights = FastMLPWeights(
        of_gate.t() @ queries,
        of_gate.sum(0),
        of_up.t() @ queries,
        of_up.sum(0),
        total.t() @ hidden.product + scaled.t() @ tangent,
        total.sum(0),
    )
    return Adjoints(of_queries, -pushed, (errors * read_tangent).sum(1), of_weights)


def _summed(x: Tensor, sharding: TableSharding | None) -> Tensor:
    return x if sharding is None else sharding.sum_shards(x)
