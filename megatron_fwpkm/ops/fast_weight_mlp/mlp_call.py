"""One call of a fast-weight MLP, whatever computes it: from what it is given, checked, to what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..chunk_pieces import Piece, call_schedule, flush_schedule
from ..precision import full_precision
from ..stream import Stream, joined_stream
from .mlp_options import FastMLPOptions
from .mlp_state import FastMLPOutput, FastMLPState, FastMLPWeights


class Computed(NamedTuple):
    """What computes a call gives back; fields as in `FastMLPOutput`, and the weights after the call."""

    retrieved: Tensor
    memorization_loss: Tensor
    weights: FastMLPWeights


@dataclass(frozen=True)
class MLPCall:
    """What one call has to do, checked.

    Attributes:
        stream: pending tokens, then new ones.
        state: before the call.
        options: the caller's.
        pieces: what is read and written when.
        waiting: position of the first token that stays pending.
    """

    stream: Stream
    state: FastMLPState
    options: FastMLPOptions
    pieces: list[Piece]
    waiting: int

    @classmethod
    def of_tokens(
        cls,
        queries: Tensor,
        targets: Tensor,
        gates: Tensor | None,
        mask: Tensor | None,
        state: FastMLPState,
        options: FastMLPOptions,
    ) -> MLPCall:
        """A call that reads new tokens.

        Raises:
            ValueError: the tokens do not fit the weights, the pending tokens or the boundary.
        """
        check_weights(state.weights)
        _check_tokens(queries, targets, gates, mask, state.weights)
        stream = joined_stream(queries, targets, gates, mask, state.pending, options.boundary)
        return cls(stream, state, options, *call_schedule(options, stream.num_pending, queries.shape[1]))

    @classmethod
    def of_pending(cls, state: FastMLPState, options: FastMLPOptions) -> MLPCall:
        """A call without new tokens that writes the pending ones whose targets are known.

        Raises:
            ValueError: the weights do not fit each other.
        """
        check_weights(state.weights)
        weights, pending = state.weights, state.pending
        if pending is None:
            queries = weights.gate_weight.new_zeros(1, 0, weights.gate_weight.shape[1])
            stream = Stream(queries, queries.new_zeros(1, 0, len(weights.down_bias)), None, None, 0)
        else:
            stream = Stream(pending.queries, pending.targets, pending.gates, pending.mask, pending.num_tokens)
        return cls(stream, state, options, *flush_schedule(state.num_pending, options.lookahead))

    def window_means(self) -> Tensor:
        """The target of every token but the last `lookahead` ones, [B, S - lookahead, value_dim]."""
        targets, lookahead = self.stream.targets, self.options.lookahead
        if not lookahead or targets.shape[1] <= lookahead:
            return targets[:, : max(0, targets.shape[1] - lookahead)]
        return targets.unfold(1, lookahead + 1, 1).mean(-1)

    def run(self, compute: Callable[[MLPCall], Computed]) -> FastMLPOutput:
        """Do it, in full float32, with one implementation."""
        if not self.pieces:
            reads = self.stream.targets.new_zeros(len(self.stream.targets), 0, self.stream.targets.shape[2])
            return FastMLPOutput(reads, reads.new_zeros(len(reads), 0), self.state)
        with full_precision(self.state.weights.down_bias.device):
            retrieved, losses, weights = compute(self)
        return FastMLPOutput(retrieved, losses, FastMLPState(weights.detach(), self.stream.tail(self.waiting)))


def check_weights(weights: FastMLPWeights) -> None:
    """Check the weights against each other.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    width = len(weights.gate_bias) if weights.gate_bias.ndim == 1 else -1
    keys = weights.gate_weight.shape[-1] if weights.gate_weight.ndim == 2 else -1
    values = len(weights.down_bias) if weights.down_bias.ndim == 1 else -1
    wanted = (width, keys), (width,), (width, keys), (width,), (values, width), (values,)
    first = weights.gate_weight
    for name, tensor, shape in zip(FastMLPWeights._fields, weights, wanted, strict=True):
        if tuple(tensor.shape) != shape:
            shapes = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(FastMLPWeights._fields, weights, strict=True))
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, which does not fit the others: gate and up must be "
                f"[F, key_dim] with biases [F], down [value_dim, F] with bias [value_dim]; got {shapes}"
            )
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 (or float64 for tests), got {tensor.dtype}")
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, but gate_weight {first.dtype} on {first.device}; all "
                "fast weights must have the same dtype and device"
            )


def _check_tokens(
    queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None, weights: FastMLPWeights
) -> None:
    """Check the tokens of one call against the weights."""
    keys, values = weights.gate_weight.shape[1], len(weights.down_bias)
    if queries.ndim != 3 or not queries.shape[0] or queries.shape[2] != keys:
        raise ValueError(
            f"queries must have shape [B, T, key_dim] with B >= 1 and the weights' key_dim={keys}, "
            f"got {list(queries.shape)}"
        )
    batch, length = queries.shape[:2]
    for name, tensor, shape in (
        ("targets", targets, (batch, length, values)),
        ("gates", gates, (batch, length)),
        ("mask", mask, (batch, length)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            meaning = "[B, T, value_dim]" if name == "targets" else "[B, T]"
            raise ValueError(f"{name} must have shape {meaning} = {list(shape)}, got {list(tensor.shape)}")
    first = weights.gate_weight
    for name, tensor in (("queries", queries), ("targets", targets), ("gates", gates)):
        if tensor is not None and (tensor.dtype != first.dtype or tensor.device != first.device):
            raise ValueError(
                f"{name} are {tensor.dtype} on {tensor.device}, but the fast weights are {first.dtype} on "
                f"{first.device}; convert {name} before the call (for example with .to(state.weights.gate_weight))"
            )
    if mask is not None and mask.device != first.device:
        raise ValueError(f"mask is on {mask.device}, but the fast weights are on {first.device}")
