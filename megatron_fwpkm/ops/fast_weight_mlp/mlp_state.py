"""What a fast-weight MLP is made of, and what one call gives back.

Shapes: B sequences, T tokens, P pending tokens, hidden width F.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from ..state import PendingTokens


class FastMLPWeights(NamedTuple):
    """Fast weights of `down(silu(gate(q)) * up(q))`. Nothing writes into them: a write makes new ones.

    With sharding a process has some rows of `gate` and `up` and the same columns of `down`, and all of `down_bias`.
    """

    gate_weight: Tensor
    """[F, key_dim]"""
    gate_bias: Tensor
    """[F]"""
    up_weight: Tensor
    """[F, key_dim]"""
    up_bias: Tensor
    """[F]"""
    down_weight: Tensor
    """[value_dim, F]"""
    down_bias: Tensor
    """[value_dim]"""

    def detach(self) -> FastMLPWeights:
        """The same numbers outside any graph."""
        return FastMLPWeights(*(weight.detach() for weight in self))


@dataclass(frozen=True)
class FastMLPState:
    """The fast weights of one MLP, and the tokens that still wait to be written.

    Attributes:
        weights: as they are.
        pending: tokens waiting for their targets (`boundary="carry"` only), or None when nothing waits.
    """

    weights: FastMLPWeights
    pending: PendingTokens | None = None
    rounding: ClassVar[None] = None
    """Of float32 weights nothing is rounded."""

    @property
    def num_pending(self) -> int:
        """Number of tokens per sequence that wait to be written."""
        return 0 if self.pending is None else self.pending.num_tokens

    def tables(self) -> dict[str, Tensor]:
        """The fast weights by name, not copies."""
        return self.weights._asdict()

    def with_tables(
        self, tables: Mapping[str, Tensor], pending: PendingTokens | None, rounding: Tensor | None = None
    ) -> FastMLPState:
        """A state of the same kind from fast weights by name; nothing in it is rounded."""
        return FastMLPState(FastMLPWeights(**{name: tables[name] for name in FastMLPWeights._fields}), pending)


@dataclass(frozen=True)
class FastMLPOutput:
    """What one call returns.

    Attributes:
        retrieved: [B, T, value_dim], differentiable.
        memorization_loss: [B, number of written tokens], gate * mask * mean over value_dim of the squared error
            (read - target)^2 that the write reduces, in the order of the writes; detached.
        state: the state after the call, detached.
    """

    retrieved: Tensor
    memorization_loss: Tensor
    state: FastMLPState
