"""Addressing of all pieces of a call, and the sub-keys' movement between them, with its exact backward.

The sub-keys never depend on the values, so this chain runs first. Its backward contains the second derivative of the
addressing loss in closed form; the derivation is in the README of this folder. Names there and here:

    delta = q - K[j]    d = |delta|^2    rho = 1 / (1e-3 + d)    s = -log(1e-3 + d)    P = softmax of the kept s
    y = (step / R) * P * (u - sum P u)    c = 2 * rho * y    K'[j] = K[j] - sum over readers of c * delta

With ``dot_product``: s = <q, K[j]>, c = y, K'[j] = K[j] - sum of c * q.

Where processes share the sub-keys by rows, all of them know what was chosen and how strongly it is pulled; each moves
its own rows, and has the part of the queries' gradients that comes from them.

Shapes: G = heads * 2 groups, M tokens (all sequences, time first), k = topk, n sub-keys of a whole list, n' of them
here (all of them without sharding), h = key_dim / 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..product_key.reference import ENTROPY_EPSILON, IDW_EPSILON
from ..product_key.selection import (
    KeptSubKeys,
    PairCandidates,
    gather_sub_keys,
    scores_of,
    select_slots,
)
from .key_rows import KeyRows, only_owned
from .precision import full_precision
from .sparse.row_sums import sum_rows


class KeyPiece(NamedTuple):
    """Rows (token * B + sequence) that a piece reads, [start, stop), and that move the sub-keys, [start, moving)."""

    start: int
    stop: int
    moving: int


class KeyOptions(NamedTuple):
    """What the chain needs to know besides its tensors."""

    topk: int
    score: str
    key_lr: float
    pieces: list[KeyPiece]
    rows: KeyRows


class _Saved(NamedTuple):
    """What backward needs of one piece; the last six are empty where the sub-keys did not move."""

    sub_keys: Tensor  # [G, n', h], before the piece moved them
    indices: Tensor  # [G, M, k], counted over whole lists
    costs: Tensor  # [G, M, k]
    first: Tensor  # [heads, M, k]
    second: Tensor  # [heads, M, k]
    probabilities: Tensor  # [G, R, k]
    pull: Tensor  # [G, M, k]: c, zero for tokens that do not move keys
    mean: Tensor  # [2, n]: mean probability
    order: Tensor  # pairs of the rows here, sorted by sub-key
    starts: Tensor  # [G * n']: first sorted pair of every sub-key


class _Movement(NamedTuple):
    """One step of the addressing loss."""

    loss: Tensor
    probabilities: Tensor
    pull: Tensor
    mean: Tensor


def _per_half(indices: Tensor, num_subkeys: int) -> Tensor:
    """[G, R, k] sub-key numbers as positions in [2 * n]: heads share the mean probability of a sub-key."""
    return indices + (torch.arange(indices.shape[0], device=indices.device) % 2 * num_subkeys).view(-1, 1, 1)


def _slope(mean: Tensor) -> Tensor:
    """u: derivative of mean * log(mean + eps)."""
    shifted = mean + ENTROPY_EPSILON
    return torch.log(shifted) + mean / shifted


def _move(scores: Tensor, costs: Tensor, indices: Tensor, num_subkeys: int, options: KeyOptions) -> _Movement:
    """The addressing loss of R tokens and the pull of every kept pair towards or from its query."""
    groups, tokens, _ = scores.shape
    readers = groups // 2 * tokens
    probabilities = scores.softmax(-1)
    places = _per_half(indices, num_subkeys)
    mean = scores.new_zeros(2 * num_subkeys).index_add_(0, places.flatten(), probabilities.flatten()).div_(readers)
    loss = (mean * torch.log(mean + ENTROPY_EPSILON)).sum()
    if not options.key_lr:
        return _Movement(loss, probabilities, probabilities.new_zeros(0), mean)
    slopes = _slope(mean)[places]
    pull = (slopes - (probabilities * slopes).sum(-1, keepdim=True)).mul_(probabilities).mul_(options.key_lr / readers)
    if options.score != "dot_product":
        pull.mul_(2).div_(costs + IDW_EPSILON)
    return _Movement(loss, probabilities, pull, mean)


def _directions(queries: Tensor, rows: Tensor, score: str) -> Tensor:
    """[G, M, k, h]: what a pull moves a sub-key along: q - K, or q."""
    return queries.unsqueeze(2).expand_as(rows) if score == "dot_product" else queries.unsqueeze(2) - rows


def _sum_per_sub_key(weights: Tensor, directions: Tensor, order: Tensor, starts: Tensor, like: Tensor) -> Tensor:
    """Sum of weights [G, M, k] * directions [G, M, k, h] over every sub-key's readers, shaped ``like`` [G, n', h]."""
    flat = directions.reshape(-1, directions.shape[-1])
    return sum_rows(flat, order, starts, weights.flatten()[order]).view_as(like)


class KeyChain(torch.autograd.Function):
    """queries [G, S, h], sub_keys [G, n', h] -> slot scores [rows, heads * k], slots, moved sub-keys, losses.

    ``rows`` runs over the rows read by all pieces, one piece after the other. Gradients: queries and sub_keys.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, sub_keys: Tensor, options: KeyOptions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Address every piece with the sub-keys the piece before has left behind."""
        heads, topk, rows = sub_keys.shape[0] // 2, options.topk, options.rows
        keep = any(ctx.needs_input_grad)
        candidates = PairCandidates(topk, queries.device)
        scores_out, slots_out, losses, saved = [], [], [], []
        none = queries.new_zeros(0)
        moves = bool(options.key_lr) and any(piece.moving > piece.start for piece in options.pieces)
        blocks = [queries[:, piece.start : piece.stop] for piece in options.pieces]
        chosen: list[KeptSubKeys] = []
        if not moves:
            # With sub-keys that stand still, processes that share them meet once per call and not once per piece.
            chosen = rows.choose([rows.propose(block, sub_keys, topk, options.score) for block in blocks], topk)
        for number, (piece, block) in enumerate(zip(options.pieces, blocks, strict=True)):
            if moves:
                chosen += rows.choose([rows.propose(block, sub_keys, topk, options.score)], topk)
            kept = chosen[number]
            scores = scores_of(kept.costs, options.score)
            halves = (heads, 2, *scores.shape[1:])
            slots = select_slots(scores.view(halves), kept.indices.view(halves), rows.num_subkeys, candidates)
            scores_out.append(slots.scores.transpose(0, 1).reshape(-1, heads * topk))
            slots_out.append(slots.indices.transpose(0, 1).reshape(-1, heads * topk))
            moving = piece.moving - piece.start
            movement = _Movement(none, none, none, none)
            order, starts, before = none, none, sub_keys
            if moving:
                movement = _move(
                    scores[:, :moving], kept.costs[:, :moving], kept.indices[:, :moving], rows.num_subkeys, options
                )
                losses.append(movement.loss)
            if keep or (moving and options.key_lr):
                order, starts = rows.sort_pairs(kept.indices)
            if moving and options.key_lr:
                if moving < block.shape[1]:
                    pull = scores.new_zeros(scores.shape)
                    pull[:, :moving] = movement.pull
                    movement = movement._replace(pull=pull)
                directions = _directions(block, gather_sub_keys(sub_keys, rows.local(kept.indices)[0]), options.score)
                sub_keys = sub_keys - _sum_per_sub_key(movement.pull, directions, order, starts, sub_keys)
            if keep:
                _, probabilities, pull, mean = movement
                saved.append(_Saved(before, *kept, slots.first, slots.second, probabilities, pull, mean, order, starts))
        ctx.options = options
        ctx.save_for_backward(queries, *(tensor for piece_saved in saved for tensor in piece_saved))
        loss_out = torch.stack(losses) if losses else none
        slots_all = slots_out[0] if len(slots_out) == 1 else torch.cat(slots_out)
        ctx.mark_non_differentiable(slots_all, sub_keys, loss_out)
        ctx.set_materialize_grads(False)
        return torch.cat(scores_out), slots_all, sub_keys, loss_out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None, None]:
        """Last piece first; ``grad_keys`` is the gradient of the sub-keys after the piece at hand."""
        if grad_scores is None:
            return None, None, None
        options: KeyOptions = ctx.options
        queries, *tensors = ctx.saved_tensors
        width = len(_Saved._fields)
        grad_queries = torch.zeros_like(queries)
        grad_keys: Tensor | None = None
        stop = grad_scores.shape[0]
        with full_precision(queries.device):
            for number in reversed(range(len(options.pieces))):
                piece, saved = options.pieces[number], _Saved(*tensors[number * width : (number + 1) * width])
                start = stop - (piece.stop - piece.start)
                block = queries[:, piece.start : piece.stop]
                grad_block, grad_keys = _piece_backward(block, grad_scores[start:stop], grad_keys, saved, options)
                grad_queries[:, piece.start : piece.stop] += grad_block
                stop = start
        return options.rows.sum_shards(grad_queries), grad_keys, None


def _kept_score_gradients(grad_scores: Tensor, saved: _Saved) -> Tensor:
    """Gradient of slot scores [M, heads * k] spread to the kept scores of both halves [G, M, k]."""
    heads, tokens, topk = saved.first.shape
    per_head = grad_scores.view(tokens, heads, topk).transpose(0, 1)
    gradients = grad_scores.new_zeros(heads, 2, tokens, topk)
    gradients[:, 0].scatter_add_(-1, saved.first, per_head)
    gradients[:, 1].scatter_add_(-1, saved.second, per_head)
    return gradients.view(2 * heads, tokens, topk)


def _pull_backward(grad_pull: Tensor, saved: _Saved, options: KeyOptions) -> Tensor:
    """Gradient of c [G, R, k] (through y only) to the kept scores, through P, the mean P and u (second derivative)."""
    probabilities = saved.probabilities
    groups, tokens, _ = probabilities.shape
    readers = groups // 2 * tokens
    places = _per_half(saved.indices[:, :tokens], options.rows.num_subkeys)
    slopes = _slope(saved.mean)[places]
    expected = (probabilities * slopes).sum(-1, keepdim=True)
    weighted = grad_pull * (options.key_lr / readers)
    balance = -(weighted * probabilities).sum(-1, keepdim=True)
    grad_probabilities = weighted * (slopes - expected) + balance * slopes
    grad_slopes = torch.zeros_like(saved.mean)
    grad_slopes.index_add_(0, places.flatten(), ((weighted + balance) * probabilities).flatten())
    shifted = saved.mean + ENTROPY_EPSILON
    grad_mean = grad_slopes * (1 / shifted + ENTROPY_EPSILON / shifted.square())
    grad_probabilities += (grad_mean / readers)[places]
    return probabilities * (grad_probabilities - (probabilities * grad_probabilities).sum(-1, keepdim=True))


def _piece_backward(
    queries: Tensor, grad_scores: Tensor, grad_moved: Tensor | None, saved: _Saved, options: KeyOptions
) -> tuple[Tensor, Tensor]:
    """Gradients of a piece's queries [G, M, h], the part of the rows here, and of the sub-keys before it [G, n', h]."""
    idw = options.score != "dot_product"
    positions, foreign = options.rows.local(saved.indices)
    rows = gather_sub_keys(saved.sub_keys, positions)
    directions = _directions(queries, rows, options.score)
    grad_kept = _kept_score_gradients(grad_scores, saved)
    density = 1 / (saved.costs + IDW_EPSILON) if idw else None
    moves = grad_moved is not None and saved.pull.numel() > 0
    grad_costs_of_pull, grad_rows, pull = None, None, saved.pull
    if moves:
        assert grad_moved is not None
        tokens = saved.probabilities.shape[1]
        grad_rows = gather_sub_keys(grad_moved, positions)
        # Only the owner of a row knows it, and through the probabilities it concerns all kept scores of a token.
        grad_pull = options.rows.sum_owned(-(directions * grad_rows).sum(-1), foreign)
        grad_y = grad_pull if density is None else 2 * density * grad_pull
        grad_kept[:, :tokens] += _pull_backward(grad_y[:, :tokens], saved, options)
        if density is not None:
            grad_costs_of_pull = -density * pull * grad_pull
    if density is None:
        weights, along = grad_kept, rows
    else:
        # s = -log(1e-3 + d) and d = |delta|^2
        grad_costs = -density * grad_kept
        weights = 2 * (grad_costs if grad_costs_of_pull is None else grad_costs + grad_costs_of_pull)
        along = directions
    weights = only_owned(weights, foreign)
    grad_queries = (weights.unsqueeze(-2) @ along).squeeze(-2)
    grad_keys = _sum_per_sub_key(weights, directions, saved.order, saved.starts, saved.sub_keys)
    if idw:
        grad_keys.neg_()
    if grad_moved is not None:
        grad_keys += grad_moved
    if moves:
        assert grad_moved is not None and grad_rows is not None
        pull = only_owned(pull, foreign)
        grad_queries -= (pull.unsqueeze(-2) @ grad_rows).squeeze(-2)
        if idw:
            # K' = K - c (q - K) contains K twice.
            total = torch.zeros_like(saved.sub_keys[..., 0])
            total.scatter_add_(1, positions.flatten(1), pull.flatten(1))
            grad_keys += grad_moved * total.unsqueeze(-1)
    return grad_queries, grad_keys
