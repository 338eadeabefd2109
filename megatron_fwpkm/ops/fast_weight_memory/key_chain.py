"""Addressing of all pieces of a call, and the sub-keys' movement between them, with its exact backward.

The sub-keys never depend on the values, so this chain runs first. Its backward contains the second derivative of the
addressing loss in closed form; the derivation is in the README of this folder. Names there and here:

    delta = q - K[j]    d = |delta|^2    rho = 1 / (1e-3 + d)    s = -log(1e-3 + d)    P = softmax of the kept s
    y = (step / R) * P * (u - sum P u)    c = 2 * rho * y    K'[j] = K[j] - sum over readers of c * delta

With `dot_product`: s = <q, K[j]>, c = y, K'[j] = K[j] - sum of c * q.

This is the driver: the order of the pieces, what is kept for backward, and what processes that share the sub-keys by
rows tell each other. All of them know what was chosen and how strongly it moves its sub-key; each moves its own rows,
and has the part of the queries' gradients that comes from them. What is computed for one piece is done by its *steps*,
which exist in torch (`sparse/key_steps.py`, which says what each is for) and in Triton (`triton/key_steps.py`).

Shapes: G = heads * 2 groups, M tokens (all sequences, time first), k = topk, n sub-keys of a whole list, n' of them
here (all of them without sharding), h = key_dim / 2.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernel_forms import aligned
from ..named_ranges import named_range
from ..precision import full_precision
from ..product_key.selection import KeptSubKeys
from .key_rows import KeyRows, Readers, sort_readers

if TYPE_CHECKING:
    from .sparse.key_steps import SparseKeySteps
    from .triton.key_steps import TritonKeySteps

    KeySteps: TypeAlias = SparseKeySteps | TritonKeySteps


class KeyPiece(NamedTuple):
    """Rows (token * B + sequence) that a piece reads, [start, stop), and that move the sub-keys, [start, moving)."""

    start: int
    stop: int
    moving: int


class KeyOptions(NamedTuple):
    """What the chain needs to know besides its tensors.

    Attributes:
        steps: made of (queries, options) for one call, in torch or in Triton.
        topk: k.
        score: `idw` or `dot_product`.
        key_lr: step size of the sub-keys; 0 keeps them still.
        pieces: the rows of every piece.
        rows: the sub-keys that are here.
    """

    steps: type[KeySteps]
    topk: int
    score: str
    key_lr: float
    pieces: list[KeyPiece]
    rows: KeyRows

    @property
    def moves(self) -> bool:
        """Whether the call moves the sub-keys at all."""
        return bool(self.key_lr) and any(piece.moving > piece.start for piece in self.pieces)


class SavedPiece(NamedTuple):
    """What backward needs of one piece; the last five are empty where the sub-keys did not move.

    Attributes:
        sub_keys: [G, n', h], before the piece moved them.
        indices: [G, M, k], counted over whole lists.
        costs: [G, M, k].
        positions: which kept sub-keys each slot pairs, as the steps gave them.
        probabilities: [G, M, k], or only those of the tokens that move sub-keys.
        strengths: [G, M, k]: c, 0 for tokens that do not move sub-keys.
        means: [2, n], mean probability.
        order: see `Readers`.
        starts: see `Readers`.
    """

    sub_keys: Tensor
    indices: Tensor
    costs: Tensor
    positions: Tensor
    probabilities: Tensor
    strengths: Tensor
    means: Tensor
    order: Tensor
    starts: Tensor


class KeyChain(torch.autograd.Function):
    """queries [G, S, h], sub_keys [G, n', h] -> slot scores [rows, heads * k], slots, moved sub-keys, losses.

    `rows` runs over the rows read by all pieces, one piece after the other. Gradients: queries and sub_keys.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, sub_keys: Tensor, options: KeyOptions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Address every piece with the sub-keys the piece before has left behind."""
        sub_keys = aligned(sub_keys)
        steps = options.steps(queries, options)
        joined = steps.joins_still_pieces and not options.moves
        stretches = [_span(options.pieces)] if joined else [_alone(piece) for piece in options.pieces]
        with named_range("memory addressing"):
            addressed = _address(queries, sub_keys, stretches, steps, options)
        losses = steps.losses(addressed.means) if addressed.means else queries.new_zeros(0)
        scores, slots = _join(addressed.scores), _join(addressed.slots)
        if joined:
            scores, slots = _rows_of_pieces(scores, options.pieces), _rows_of_pieces(slots, options.pieces)
        steps.forget_forward()
        ctx.options, ctx.steps, ctx.joined = options, steps, joined
        ctx.pieces = [stretch.piece for stretch in stretches]
        saved = addressed.saved if any(ctx.needs_input_grad) else []
        ctx.save_for_backward(queries, *(tensor for piece in saved for tensor in piece))
        ctx.mark_non_differentiable(slots, addressed.sub_keys, losses)
        ctx.set_materialize_grads(False)
        return scores, slots, addressed.sub_keys, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None, None]:
        """Last piece first; `grad_keys` is the gradient of the sub-keys after the piece at hand."""
        if grad_scores is None:
            return None, None, None
        options: KeyOptions = ctx.options
        queries, *tensors = ctx.saved_tensors
        if ctx.joined:
            grad_scores = _rows_of_span(grad_scores, options.pieces)
        width = len(SavedPiece._fields)
        saved = [SavedPiece(*tensors[first : first + width]) for first in range(0, len(tensors), width)]
        with full_precision(queries.device), named_range("memory addressing backward"):
            grad_queries, grad_keys = _differentiate(ctx, queries, saved, aligned(grad_scores))
        return options.rows.sum_shards(grad_queries), grad_keys, None


class _Stretch(NamedTuple):
    """Rows that are addressed together, and the parts of them that move the sub-keys, or would: one for each piece."""

    piece: KeyPiece
    parts: list[slice]


def _alone(piece: KeyPiece) -> _Stretch:
    moving = piece.moving - piece.start
    return _Stretch(piece, [slice(0, moving)] if moving else [])


def _span(pieces: list[KeyPiece]) -> _Stretch:
    """The rows of all pieces."""
    start, stop = min(piece.start for piece in pieces), max(piece.stop for piece in pieces)
    parts = [slice(p.start - start, p.moving - start) for p in pieces if p.moving > p.start]
    return _Stretch(KeyPiece(start, stop, start + max((part.stop for part in parts), default=0)), parts)


class _Addressed(NamedTuple):
    """What was chosen for every stretch, and what became of the sub-keys."""

    scores: list[Tensor]  # [M, heads * k]
    slots: list[Tensor]  # [M, heads * k]
    sub_keys: Tensor  # [G, n', h]
    means: list[Tensor]  # [2, n] of every piece that has moving tokens
    saved: list[SavedPiece]


def _address(
    queries: Tensor, sub_keys: Tensor, stretches: list[_Stretch], steps: KeySteps, options: KeyOptions
) -> _Addressed:
    rows, moves, none = options.rows, options.moves, queries.new_empty(0)
    scores, slots, means, saved = [], [], [], []
    blocks = [queries[:, stretch.piece.start : stretch.piece.stop] for stretch in stretches]
    chosen: list[KeptSubKeys] = []
    if rows.shared and not moves:
        # With sub-keys that stand still, processes that share them meet once per call and not once per piece.
        chosen = rows.choose([steps.propose(block, sub_keys) for block in blocks], options.topk)
    for number, ((piece, parts), block) in enumerate(zip(stretches, blocks, strict=True)):
        moving = piece.moving - piece.start
        kept, choice = steps.address(block, sub_keys, moving, chosen[number] if chosen else None)
        scores.append(choice.scores.flatten(1))
        slots.append(choice.slots.flatten(1))
        before, movement = sub_keys, [none] * 5
        if moves and moving:
            assert choice.probabilities is not None
            readers = steps.sort_readers(kept.indices)
            means.append(steps.mean_probability(choice.probabilities, kept.indices, moving, readers))
            strengths = steps.strengths(kept, choice.probabilities, means[-1], moving)
            sub_keys = steps.move(block, sub_keys, kept, strengths, readers)
            movement = [choice.probabilities, strengths, means[-1], readers.order, readers.starts]
        else:
            for part in parts:
                assert choice.probabilities is not None
                counted = choice.probabilities[:, part].contiguous(), kept.indices[:, part].contiguous()
                means.append(steps.mean_probability(*counted, part.stop - part.start))
        saved.append(SavedPiece(before, kept.indices, kept.costs, choice.positions, *movement))
        del kept  # and its directions, which are large, before the next piece has its own
    return _Addressed(scores, slots, sub_keys, means, saved)


def _differentiate(
    ctx: Any, queries: Tensor, saved: list[SavedPiece], grad_scores: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the queries, the part from the sub-keys here, and of the sub-keys before the first piece."""
    steps: KeySteps = ctx.steps
    pieces: list[KeyPiece] = ctx.pieces
    rows: KeyRows = ctx.options.rows
    grad_queries = queries.new_zeros(queries.shape)
    grad_keys: Tensor | None = None
    # Before the first movement only the sub-keys themselves can ask for their gradient.
    moving = [number for number, piece_saved in enumerate(saved) if piece_saved.strengths.numel()]
    first_wanted = 0 if ctx.needs_input_grad[1] else min(moving, default=len(saved)) + 1
    stop = grad_scores.shape[0]
    for number in reversed(range(len(pieces))):
        piece, start = pieces[number], stop - (pieces[number].stop - pieces[number].start)
        block = slice(piece.start, piece.stop)
        backward = steps.backward(queries[:, block], piece, saved[number], grad_keys)
        grad_strengths = None
        if grad_keys is not None and saved[number].strengths.numel():
            # Only the owner of a row knows it, and through the probabilities it concerns all kept scores of a token.
            grad_strengths = rows.sum_shards(backward.strength_gradients())
        weights = backward.token_gradients(grad_scores[start:stop], grad_queries[:, block], grad_strengths)
        if number >= first_wanted:
            readers = Readers(saved[number].order, saved[number].starts)
            if not readers.order.numel():
                readers = sort_readers(saved[number].indices, rows.num_subkeys)
            grad_keys = backward.sub_key_gradients(weights, readers)
        del backward  # and what it holds, which is large, before the next one begins
        stop = start
    return grad_queries, grad_keys


def _join(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _overlap(pieces: list[KeyPiece]) -> bool:
    """Whether rows are read again; a piece may then begin before the first one, where tokens waited."""
    return any(piece.start != before.stop for before, piece in pairwise(pieces))


def _rows_of_pieces(rows: Tensor, pieces: list[KeyPiece]) -> Tensor:
    """Rows of a span as rows of its pieces, one piece after the other."""
    if not _overlap(pieces):
        return rows
    first = _span(pieces).piece.start
    return torch.cat([rows[piece.start - first : piece.stop - first] for piece in pieces])


def _rows_of_span(grad_rows: Tensor, pieces: list[KeyPiece]) -> Tensor:
    """Gradients of the rows of pieces as gradients of the rows of their span."""
    if not _overlap(pieces):
        return grad_rows
    span = _span(pieces).piece
    gradients = grad_rows.new_zeros(span.stop - span.start, grad_rows.shape[1])
    lengths = [piece.stop - piece.start for piece in pieces]
    for piece, part in zip(pieces, grad_rows.split(lengths), strict=True):
        gradients[piece.start - span.start : piece.stop - span.start] += part
    return gradients
