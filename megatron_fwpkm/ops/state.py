"""What a fast-weight memory is made of, and what one call gives back.

Shapes: B sequences, T tokens, P pending tokens, `heads` heads, `n` sub-keys per half, `n * n` slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .row_overlay import RowOverlay

if TYPE_CHECKING:
    from .undo_log import UndoLog


@dataclass(frozen=True)
class PendingTokens:
    """Tokens that were read but not yet written, because their targets or their chunk are incomplete.

    Attributes:
        queries: [B, P, heads, key_dim].
        targets: [B, P, value_dim].
        gates: [B, P], or None when the memory is used without gates.
        mask: [B, P], or None when no call so far gave a mask.
    """

    queries: Tensor
    targets: Tensor
    gates: Tensor | None = None
    mask: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Number of waiting tokens per sequence."""
        return self.queries.shape[1]

    def select(self, sequences: Tensor) -> PendingTokens:
        """The tokens of these sequences, which may repeat, in this order."""
        gates = None if self.gates is None else self.gates[sequences]
        mask = None if self.mask is None else self.mask[sequences]
        return PendingTokens(self.queries[sequences], self.targets[sequences], gates, mask)


@dataclass(frozen=True)
class FastWeightState:
    """The fast weights of one memory, and the tokens that still wait to be written.

    Attributes:
        sub_keys: [heads, 2, num_subkeys, key_dim / 2], moved by the addressing loss; with sharding, this rank's rows of
            every list.
        values: [num_subkeys ** 2, value_dim], moved by the memorization loss; with sharding, this rank's columns. Like
            the sub-keys, or bfloat16: then computed with in float32, and rounded stochastically when written.
        pending: tokens waiting for their targets (`boundary="carry"` only), or None when nothing waits.
        rounding: [3] int64, what the rounding of bfloat16 values depends on (`make_rounding`); None for others.
        overlay: the rows of this memory that differ from `values`, which then is never written, and may be the base of
            many memories; None where `values` is this memory's own.
    """

    sub_keys: Tensor
    values: Tensor
    pending: PendingTokens | None = None
    rounding: Tensor | None = None
    overlay: RowOverlay | None = None

    @property
    def table(self) -> Tensor:
        """The rows that writes go to: [num_subkeys ** 2, value_dim], or [U, value_dim] of an overlay. Not a copy."""
        return self.values if self.overlay is None else self.overlay.table

    def whole_values(self) -> Tensor:
        """[num_subkeys ** 2, value_dim] as this memory reads them; a copy where there is an overlay."""
        return self.values if self.overlay is None else self.overlay.whole()

    @property
    def num_pending(self) -> int:
        """Number of tokens per sequence that wait to be written."""
        return 0 if self.pending is None else self.pending.num_tokens

    def tables(self) -> dict[str, Tensor]:
        """The fast weights by name, not copies."""
        return {"sub_keys": self.sub_keys, "values": self.values}

    def with_tables(
        self, tables: Mapping[str, Tensor], pending: PendingTokens | None, rounding: Tensor | None = None
    ) -> FastWeightState:
        """A state of the same kind from fast weights by name."""
        return FastWeightState(tables["sub_keys"], tables["values"], pending, rounding)


@dataclass(frozen=True)
class FastWeightOutput:
    """What one call of the memory returns.

    Attributes:
        retrieved: [B, T, value_dim], differentiable.
        slot_indices: [B, T, heads, topk] int64, the slots read for every token.
        slot_weights: [B, T, heads, topk], their weights: a softmax over all heads * topk of a token; differentiable.
        memorization_loss: [B, number of written tokens], gate * mask * mean over value_dim of the squared error
            (read - target)^2 that the write reduces, in the order of the writes; detached.
        addressing_loss: [number of key updates], detached, before weighting: -(entropy of half 1 + entropy of half 2).
        state: the state after the call.
        undo_log: from the in-place functions only: what puts the tables back as they were before the call.
    """

    retrieved: Tensor
    slot_indices: Tensor
    slot_weights: Tensor
    memorization_loss: Tensor
    addressing_loss: Tensor
    state: FastWeightState
    undo_log: UndoLog | None = None
