"""``key_chain.py`` in Triton kernels: the same function and closed-form backward, without host synchronisation.

Sub-keys that stand still for a whole call are one piece of all its rows: one selection, one backward.

Where processes share the sub-keys by rows, each moves and differentiates its own, as in ``key_chain.py``.

Shapes: G = heads * 2 groups, M tokens of a piece (all sequences, time first), k = topk, n sub-keys of a whole list, n'
of them here (all of them without sharding), h = key_dim / 2.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...product_key.reference import ENTROPY_EPSILON
from ...product_key.selection import KeptSubKeys
from ...product_key.triton.select import rows_of, select_slots, select_sub_keys
from ..key_chain import KeyOptions, KeyPiece
from .key_steps import (
    KeyShape,
    Movement,
    Readers,
    ReaderSorter,
    mean_over_readers,
    pull_gradients,
    pulls_of,
    spreads_of,
    sum_per_sub_key,
    token_backward,
)


class _Saved(NamedTuple):
    """What backward needs of one piece; the last five are empty where the sub-keys did not move."""

    sub_keys: Tensor  # [G, n', h], before the piece moved them
    indices: Tensor  # [G, M, k] int32
    costs: Tensor  # [G, M, k]
    positions: Tensor  # [2, M, heads, k] int32
    probabilities: Tensor  # [G, M, k], 0 for tokens that do not move keys
    pulls: Tensor  # [G, M, k]: c
    means: Tensor  # [2, n]: mean probability
    order: Tensor  # [G * M * k]
    starts: Tensor  # [G * n + 1]


class _Addressed(NamedTuple):
    """Rows addressed by pieces, [start, stop) of each, and what became of the sub-keys."""

    scores: Tensor  # [rows, heads * k]
    slots: Tensor  # [rows, heads * k]
    sub_keys: Tensor  # [G, n', h]
    means: list[Tensor]  # [2, n] of every piece that moves sub-keys
    saved: list[_Saved]


class TritonKeyChain(torch.autograd.Function):
    """queries [G, S, h], sub_keys [G, n', h] -> slot scores [rows, heads * k], slots, moved sub-keys, losses.

    ``rows`` runs over the rows read by all pieces, one piece after the other. Gradients: queries and sub_keys.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, sub_keys: Tensor, options: KeyOptions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Address every piece with the sub-keys the piece before has left behind."""
        queries, sub_keys = rows_of(queries)[0], sub_keys.contiguous()
        step = queries.new_full((1,), options.key_lr)
        address = _address_moving if _moves(options) else _address_resting
        addressed = address(queries, sub_keys, step, options)
        losses = queries.new_zeros(0)
        if addressed.means:
            means = torch.stack(addressed.means)
            losses = (means * torch.log(means + ENTROPY_EPSILON)).sum((1, 2))
        ctx.options = options
        ctx.save_for_backward(queries, step, *(tensor for piece in addressed.saved for tensor in piece))
        ctx.mark_non_differentiable(addressed.slots, addressed.sub_keys, losses)
        ctx.set_materialize_grads(False)
        return addressed.scores, addressed.slots, addressed.sub_keys, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None, None]:
        """Last piece first; ``grad_keys`` is the gradient of the sub-keys after the piece at hand."""
        if grad_scores is None:
            return None, None, None
        options: KeyOptions = ctx.options
        queries, step, *tensors = ctx.saved_tensors
        pieces = options.pieces
        if not _moves(options):
            grad_scores, pieces = _collect(grad_scores, pieces), [_span(pieces)]
        grad_scores = grad_scores.contiguous()
        grad_queries = queries.new_zeros(queries.shape)
        grad_keys: Tensor | None = None
        stop, width = grad_scores.shape[0], len(_Saved._fields)
        for number in reversed(range(len(pieces))):
            piece, saved = pieces[number], _Saved(*tensors[number * width : (number + 1) * width])
            start = stop - (piece.stop - piece.start)
            rows = slice(piece.start, piece.stop)
            movement = None
            if grad_keys is not None and saved.pulls.numel():
                movement = _differentiate_movement(queries[:, rows], piece, saved, step, grad_keys, options)
            shape = _shape(saved.sub_keys, options)
            weights = token_backward(
                queries[:, rows],
                saved.sub_keys,
                saved.indices,
                saved.costs,
                saved.positions,
                grad_scores[start:stop],
                grad_queries[:, rows],
                movement,
                shape,
            )
            if number or ctx.needs_input_grad[1]:
                grad_keys = _sub_key_gradients(queries[:, rows], weights, saved, movement, grad_keys, shape)
            stop = start
        return options.rows.sum_shards(grad_queries), grad_keys, None


def _moves(options: KeyOptions) -> bool:
    """Whether the call moves the sub-keys at all."""
    return bool(options.key_lr) and any(piece.moving > piece.start for piece in options.pieces)


def _shape(sub_keys: Tensor, options: KeyOptions) -> KeyShape:
    rows = options.rows
    return KeyShape(options.topk, options.score, rows.num_subkeys, rows.first, rows.count, sub_keys.shape[2])


def _choose(queries: Tensor, sub_keys: Tensor, options: KeyOptions) -> KeptSubKeys:
    """The topk best sub-keys of all processes; indices are int32 and count over whole lists."""
    rows = options.rows
    topk = min(options.topk, rows.count)
    proposals = select_sub_keys(queries, sub_keys, topk, options.score, rows.first)
    (kept,) = rows.choose([proposals], options.topk)
    return kept._replace(indices=kept.indices.int())


def _address_moving(queries: Tensor, sub_keys: Tensor, step: Tensor, options: KeyOptions) -> _Addressed:
    """Every piece with sub-keys of its own."""
    shape = _shape(sub_keys, options)
    sort_readers = ReaderSorter(sub_keys.shape[0], shape.num_subkeys, queries.device)
    none = queries.new_zeros(0)
    scores, slots, means, saved = [], [], [], []
    for piece in options.pieces:
        block = queries[:, piece.start : piece.stop]
        moving = piece.moving - piece.start
        kept = _choose(block, sub_keys, options)
        choice = select_slots(kept, shape.num_subkeys, options.score, moving=moving, statistics=moving > 0)
        scores.append(choice.scores.flatten(1))
        slots.append(choice.slots.flatten(1))
        if choice.probabilities is None:
            saved.append(_Saved(sub_keys, *kept, choice.positions, none, none, none, none, none))
            continue
        num_readers = sub_keys.shape[0] // 2 * moving
        readers = sort_readers(kept.indices)
        means.append(mean_over_readers(choice.probabilities, readers, shape.num_subkeys, num_readers))
        pulls = pulls_of(*kept, choice.probabilities, means[-1], step, num_readers, shape)
        saved.append(_Saved(sub_keys, *kept, choice.positions, choice.probabilities, pulls, means[-1], *readers))
        sub_keys = sum_per_sub_key(pulls, block, sub_keys, readers, shape, base=sub_keys)
    return _Addressed(torch.cat(scores), torch.cat(slots), sub_keys, means, saved)


def _address_resting(queries: Tensor, sub_keys: Tensor, step: Tensor, options: KeyOptions) -> _Addressed:
    """All pieces at once; only the addressing loss is of each."""
    pieces, span = options.pieces, _span(options.pieces)
    shape = _shape(sub_keys, options)
    none = queries.new_zeros(0)
    kept = _choose(queries[:, span.start : span.stop], sub_keys, options)
    counted = [
        slice(piece.start - span.start, piece.moving - span.start) for piece in pieces if piece.moving > piece.start
    ]
    moving = max((rows.stop for rows in counted), default=0)
    choice = select_slots(kept, shape.num_subkeys, options.score, moving=moving, statistics=moving > 0)
    sort_readers = ReaderSorter(sub_keys.shape[0], shape.num_subkeys, queries.device)
    means = []
    for rows in counted:
        assert choice.probabilities is not None
        indices, probabilities = (x[:, rows].contiguous() for x in (kept.indices, choice.probabilities))
        readers = sort_readers(indices)
        num_readers = sub_keys.shape[0] // 2 * indices.shape[1]
        means.append(mean_over_readers(probabilities, readers, shape.num_subkeys, num_readers))
    scores, slots = (_emit(x.flatten(1), pieces) for x in (choice.scores, choice.slots))
    saved = _Saved(sub_keys, *kept, choice.positions, none, none, none, none, none)
    return _Addressed(scores, slots, sub_keys, means, [saved])


def _span(pieces: list[KeyPiece]) -> KeyPiece:
    """The rows of all pieces as one that moves nothing."""
    start = min(piece.start for piece in pieces)
    return KeyPiece(start, max(piece.stop for piece in pieces), start)


def _overlap(pieces: list[KeyPiece]) -> bool:
    """Whether rows are read again; a piece may then begin before the first one, where tokens waited."""
    return any(piece.start != before.stop for before, piece in pairwise(pieces))


def _emit(rows: Tensor, pieces: list[KeyPiece]) -> Tensor:
    """Rows of a span as rows of its pieces, one piece after the other."""
    if not _overlap(pieces):
        return rows
    first = _span(pieces).start
    return torch.cat([rows[piece.start - first : piece.stop - first] for piece in pieces])


def _collect(grad_rows: Tensor, pieces: list[KeyPiece]) -> Tensor:
    """Gradients of the rows of pieces as gradients of the rows of their span."""
    if not _overlap(pieces):
        return grad_rows
    span = _span(pieces)
    gradients = grad_rows.new_zeros(span.stop - span.start, grad_rows.shape[1])
    lengths = [piece.stop - piece.start for piece in pieces]
    for piece, part in zip(pieces, grad_rows.split(lengths), strict=True):
        gradients[piece.start - span.start : piece.stop - span.start] += part
    return gradients


def _differentiate_movement(
    block: Tensor, piece: KeyPiece, saved: _Saved, step: Tensor, grad_moved: Tensor, options: KeyOptions
) -> Movement:
    """The second derivative of the addressing loss, up to what concerns one token only."""
    shape = _shape(saved.sub_keys, options)
    num_readers = saved.costs.shape[0] // 2 * (piece.moving - piece.start)
    # Only the owner of a row knows it, and through the probabilities it concerns all kept scores of a token.
    grad_pulls = options.rows.sum_shards(pull_gradients(block, saved.sub_keys, grad_moved, saved.indices, shape))
    spreads = spreads_of(saved.costs, saved.probabilities, grad_pulls, step, num_readers, shape)
    readers = Readers(saved.order, saved.starts)
    grad_slopes = mean_over_readers(spreads, readers, shape.num_subkeys, num_readers)
    return Movement(
        saved.probabilities, saved.pulls, grad_pulls, saved.means, grad_slopes, step, grad_moved, num_readers
    )


def _sub_key_gradients(
    block: Tensor,
    weights: Tensor,
    saved: _Saved,
    movement: Movement | None,
    grad_moved: Tensor | None,
    shape: KeyShape,
) -> Tensor:
    """Gradient of the sub-keys before a piece [G, n', h]."""
    readers = Readers(saved.order, saved.starts)
    if not saved.order.numel():
        readers = ReaderSorter(weights.shape[0], shape.num_subkeys, weights.device)(saved.indices)
    # K' = K - c (q - K) contains K twice.
    pulls = movement.pulls if movement is not None and shape.idw else None
    return sum_per_sub_key(weights, block, saved.sub_keys, readers, shape, base=grad_moved, pulls=pulls)
