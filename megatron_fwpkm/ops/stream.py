"""What one call works on: the tokens that wait from earlier calls, then the new ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .state import PendingTokens


@dataclass(frozen=True)
class Stream:
    """Everything one call works on: pending tokens, then new ones; S = P + T tokens.

    Attributes:
        queries: [B, S, ...]: heads and key_dim, or key_dim alone.
        targets: [B, S, value_dim].
        gates: [B, S] or None.
        mask: [B, S] in the dtype of the queries, or None.
        num_pending: P.
    """

    queries: Tensor
    targets: Tensor
    gates: Tensor | None
    mask: Tensor | None
    num_pending: int

    @property
    def num_tokens(self) -> int:
        """Tokens per sequence, pending ones included."""
        return self.queries.shape[1]

    def write_weights(self) -> Tensor:
        """Weight of every token's write, gate * mask, [B, S]; differentiable towards the gates."""
        if self.gates is None:
            return self.queries.new_ones(self.queries.shape[:2]) if self.mask is None else self.mask
        return self.gates if self.mask is None else self.gates * self.mask

    def tail(self, start: int) -> PendingTokens | None:
        """The tokens from `start` on, detached, as the next call's pending tokens; None when there are none."""
        if start >= self.num_tokens:
            return None
        joined_and_whole = self.num_pending > 0 and start == 0

        def kept(field: Tensor) -> Tensor:
            """The waiting tokens of one field, detached."""
            # Cloned, so that a few waiting tokens do not keep a whole batch alive.
            return field.detach() if joined_and_whole else field[:, start:].detach().clone()

        return PendingTokens(
            kept(self.queries),
            kept(self.targets),
            None if self.gates is None else kept(self.gates),
            None if self.mask is None else kept(self.mask),
        )


def joined_stream(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    mask: Tensor | None,
    pending: PendingTokens | None,
    boundary: str,
) -> Stream:
    """Put the pending tokens before those of a call, which were checked.

    Raises:
        ValueError: the tokens do not fit the pending ones, or the boundary would lose these.
    """
    if mask is not None:
        mask = mask.to(queries.dtype)
    if pending is None:
        return Stream(queries, targets, gates, mask, 0)
    _check_pending(pending, queries, gates, boundary)
    if gates is not None and pending.gates is not None:
        gates = torch.cat([pending.gates.detach(), gates], dim=1)
    if mask is not None or pending.mask is not None:
        # A missing mask means that every token counts.
        old = queries.new_ones(queries.shape[0], pending.num_tokens) if pending.mask is None else pending.mask
        new = queries.new_ones(queries.shape[:2]) if mask is None else mask
        mask = torch.cat([old.detach(), new], dim=1)
    return Stream(
        torch.cat([pending.queries.detach(), queries], dim=1),
        torch.cat([pending.targets.detach(), targets], dim=1),
        gates,
        mask,
        pending.num_tokens,
    )


def _check_pending(pending: PendingTokens, queries: Tensor, gates: Tensor | None, boundary: str) -> None:
    if boundary == "drop":
        raise ValueError(
            f"state.pending holds {pending.num_tokens} tokens, which boundary='drop' would lose: write them with "
            "flush_pending, drop them with a state that has no pending tokens, or use boundary='carry'"
        )
    if pending.queries.shape[0] != queries.shape[0] or pending.queries.shape[2:] != queries.shape[2:]:
        raise ValueError(
            f"queries have shape {list(queries.shape)}, but those in state.pending {list(pending.queries.shape)}: "
            "batch size, heads and key_dim must stay the same from call to call"
        )
    if (pending.gates is None) != (gates is None):
        have, want = ("no gates", "leave gates out") if pending.gates is None else ("gates", "pass gates")
        raise ValueError(f"state.pending was recorded with {have}: {want} in this call too")
