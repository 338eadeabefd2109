"""A fast-weight MLP with its inner and outer gradients in closed form: what trains, and what an export carries.

Forward keeps the inputs, the reads and the weights that every piece read; nothing of the hidden width, which backward
computes again, piece by piece (this folder's README has the numbers).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..chunk_pieces import Piece
from ..precision import full_precision
from ..sharding import TableSharding
from .mlp_call import Computed, MLPCall
from .mlp_state import FastMLPWeights
from .swiglu import TokenRows, adjoints, descent, hidden_of, read


class _Plan(NamedTuple):
    """What a call does, without its tensors."""

    pieces: list[Piece]
    inner_lr: float
    sharding: TableSharding | None

    def step(self, piece: Piece, reads: Tensor) -> float:
        """What a write multiplies weighted errors with: descent on a mean over tokens, sequences and columns."""
        return -2 * self.inner_lr / (len(reads) * piece.num_written * reads.shape[2])


class _Kept(NamedTuple):
    """Of every piece, for backward: the weights that it read, and all its reads [B, tokens, value_dim]."""

    weights: list[FastMLPWeights]
    reads: list[Tensor]


def run_closed_form(call: MLPCall, sharding: TableSharding | None = None) -> Computed:
    """Run all pieces of a call.

    Args:
        call: with `sharding`, its weights are this process's; queries, targets, gates and mask are the same everywhere.
        sharding: collectives for weights that are spread over processes, or None. `gather` is not called.
    """
    plan, results = _Plan(call.pieces, call.options.inner_lr, sharding), list[Any]()
    stream = call.stream
    targets, write_weights = call.window_means(), stream.write_weights()
    retrieved: Tensor = _Chain.apply(plan, results, stream.queries, targets, write_weights, *call.state.weights)
    losses, weights = results
    return Computed(retrieved, losses, weights)


class _Chain(torch.autograd.Function):
    """From queries, targets (means over windows), weights of the writes, and fast weights to all reads of a call."""

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, results: list[Any], queries: Tensor, targets: Tensor, write_weights: Tensor,
        *initial: Tensor,
    ) -> Tensor:  # fmt: skip
        """Returns the reads [B, T, value_dim]; losses and the weights after the call go into `results`."""
        weights, kept = FastMLPWeights(*initial), _Kept([], [])
        losses, returned = [targets.new_zeros(len(targets), 0)], []
        for piece in plan.pieces:
            rows = queries[:, piece.start : piece.stop].flatten(0, 1)
            hidden = hidden_of(rows, weights)
            reads = read(hidden, weights, plan.sharding).view(len(queries), -1, targets.shape[2])
            kept.weights.append(weights)
            kept.reads.append(reads)
            returned.append(reads[:, piece.emit_start - piece.start :])
            if piece.num_written:
                written = slice(piece.start, piece.write_stop)
                errors = _errors(piece, reads, targets)
                weighted = _padded(piece, write_weights[:, written]).unsqueeze(2) * errors
                losses.append((weighted * errors).mean(2)[:, : piece.num_written])
                if plan.inner_lr:
                    change = descent(rows, hidden, plan.step(piece, reads) * weighted.flatten(0, 1), weights)
                    weights = FastMLPWeights(*map(torch.add, weights, change))
        ctx.plan, ctx.kept = plan, kept if any(ctx.needs_input_grad) else None
        ctx.save_for_backward(queries, targets, write_weights)
        results += [torch.cat(losses, 1), weights]
        return torch.cat(returned, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_returned: Tensor) -> tuple[Tensor | None, ...]:
        """Through the pieces from the last to the first."""
        queries, targets, write_weights = ctx.saved_tensors
        plan, kept = ctx.plan, ctx.kept
        of_queries, of_targets, of_writes = map(torch.zeros_like, (queries, targets, write_weights))
        after = FastMLPWeights(*map(torch.zeros_like, kept.weights[0]))
        end = grad_returned.shape[1]
        with full_precision(queries.device):
            for piece, weights, reads in zip(plan.pieces[::-1], kept.weights[::-1], kept.reads[::-1], strict=True):
                start = end - (piece.stop - piece.emit_start)
                grad_reads = torch.zeros_like(reads)
                grad_reads[:, piece.emit_start - piece.start :] = grad_returned[:, start:end]
                end = start
                tokens, written = slice(piece.start, piece.stop), slice(piece.start, piece.write_stop)
                step = plan.step(piece, reads) if piece.num_written else 0.0
                coefficients = step * _padded(piece, write_weights[:, written])
                errors = _errors(piece, reads, targets)
                rows = (x.flatten(0, 1) for x in (queries[:, tokens], errors, coefficients, grad_reads))
                found = adjoints(TokenRows(*rows), weights, after, plan.sharding)
                of_queries[:, tokens] += found.queries.view_as(of_queries[:, tokens])
                of_targets[:, written] += found.targets.view_as(reads)[:, : piece.num_written]
                of_writes[:, written] += step * found.coefficients.view(len(reads), -1)[:, : piece.num_written]
                after = FastMLPWeights(*map(torch.add, after, found.weights))
            if plan.sharding is not None:
                of_queries = plan.sharding.sum_shards(of_queries)
        return None, None, of_queries, of_targets, of_writes, *after


def _padded(piece: Piece, written: Tensor) -> Tensor:
    """What the written tokens have [B, W, ...], and zeros for those that are only read, [B, tokens, ...]."""
    rest = piece.stop - piece.write_stop
    return torch.cat([written, written.new_zeros(len(written), rest, *written.shape[2:])], 1)


def _errors(piece: Piece, reads: Tensor, targets: Tensor) -> Tensor:
    """Reads minus targets; 0 for tokens that are only read."""
    written = slice(piece.start, piece.write_stop)
    return _padded(piece, reads[:, : piece.num_written] - targets[:, written])
