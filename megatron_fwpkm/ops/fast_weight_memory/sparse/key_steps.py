"""The steps of the sub-keys' chain in torch; names of numbers are those of `key_chain.py`.

Shapes: G = heads * 2 groups, M tokens of a piece, k = topk, n sub-keys of a whole list, n' of them here,
h = key_dim / 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...product_key.epsilons import ENTROPY_EPSILON, IDW_EPSILON
from ...product_key.selection import (
    KeptSubKeys,
    SlotChoice,
    block_length,
    gather_sub_keys,
    number_in_groups,
    select_slots,
    select_sub_keys,
)
from ..key_chain import KeyOptions, KeyPiece, SavedPiece
from ..key_rows import KeyRows, Readers, only_owned, sort_readers
from .row_sums import sum_rows


def _per_half(indices: Tensor, num_subkeys: int) -> Tensor:
    """[G, M, k] sub-key numbers as positions in [2 * n]: heads share the mean probability of a sub-key."""
    return indices + (torch.arange(indices.shape[0], device=indices.device) % 2 * num_subkeys).view(-1, 1, 1)


def _slope(mean: Tensor) -> Tensor:
    """u: derivative of mean * log(mean + eps)."""
    shifted = mean + ENTROPY_EPSILON
    return torch.log(shifted) + mean / shifted


def _directions(queries: Tensor, rows: Tensor, score: str) -> Tensor:
    """[G, M, k, h]: what a pair moves its sub-key along: q - K, in the place of the rows K, or q."""
    if score == "dot_product":
        return queries.unsqueeze(2).expand_as(rows)
    return torch.sub(queries.unsqueeze(2), rows, out=rows)


def _sum_per_token(weights: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Sum of weights [G, M, k] * rows of a table [N, h], numbered [G * M * k], over the k of every token, [G, M, h]."""
    groups, tokens, topk = weights.shape
    starts = torch.arange(0, rows.shape[0], topk, device=rows.device)
    return sum_rows(table, rows, starts, weights.flatten()).view(groups, tokens, -1)


def _sum_per_sub_key(weights: Tensor, directions: Tensor, readers: Readers, rows: KeyRows) -> Tensor:
    """Sum of weights [G, M, k] * directions [G, M, k, h] over the readers of every sub-key here, [G, n', h]."""
    flat = directions.reshape(-1, directions.shape[-1])
    sums = sum_rows(flat, readers.order, readers.starts[:-1], weights.flatten()[readers.order])
    return sums.view(weights.shape[0], rows.num_subkeys, -1)[:, rows.first : rows.first + rows.count]


class SparseKeySteps:
    """What is computed for the pieces of a call."""

    joins_still_pieces = False
    """Whether pieces between which the sub-keys stand still are addressed and differentiated as one."""

    def __init__(self, queries: Tensor, options: KeyOptions) -> None:
        self.options, self.rows = options, options.rows
        # Those that `move` takes. Other processes' proposals come without.
        self.with_directions = options.moves and options.score == "idw" and self.rows.count == self.rows.num_subkeys

    def forget_forward(self) -> None:
        """Let go of what the pieces of a forward pass have left for each other: here nothing."""

    def propose(self, queries: Tensor, sub_keys: Tensor) -> KeptSubKeys:
        """The best of the sub-keys here for queries [G, M, h]; indices, int64, count over whole lists."""
        topk = min(self.options.topk, self.rows.count)
        kept = select_sub_keys(queries, sub_keys, topk, self.options.score, self.with_directions)
        return kept._replace(indices=kept.indices + self.rows.first) if self.rows.first else kept

    def address(
        self, queries: Tensor, sub_keys: Tensor, moving: int, chosen: KeptSubKeys | None = None
    ) -> tuple[KeptSubKeys, SlotChoice]:
        """What the queries of a piece read.

        Args:
            queries: [G, M, h].
            sub_keys: [G, n', h].
            moving: the first tokens, which move the sub-keys: only of these are there probabilities.
            chosen: the best sub-keys of all processes, if they are known already.

        Returns:
            The topk best sub-keys of every list, and the topk best slots.
        """
        if chosen is None:
            (chosen,) = self.rows.choose([self.propose(queries, sub_keys)], self.options.topk)
        return chosen, select_slots(chosen, self.rows.num_subkeys, self.options.score, moving)

    def sort_readers(self, indices: Tensor) -> Readers:
        """The pairs of a piece [G, M, k] by sub-key."""
        return sort_readers(indices, self.rows.num_subkeys)

    def losses(self, means: list[Tensor]) -> Tensor:
        """Addressing loss of every piece with these mean probabilities [2, n]: minus their entropy."""
        stacked = torch.stack(means)
        return (stacked * torch.log(stacked + ENTROPY_EPSILON)).sum((1, 2))

    def mean_probability(
        self, probabilities: Tensor, indices: Tensor, moving: int, readers: Readers | None = None
    ) -> Tensor:
        """[2, n]: mean over the readers of the probability of a sub-key, heads pooled, added in the order of the pairs.

        Args:
            probabilities: [G, at least moving, k].
            indices: [G, M, k].
            moving: the first tokens, which are meant.
            readers: these pairs by sub-key, if they are sorted already; other steps add in this order.
        """
        num_subkeys, groups = self.rows.num_subkeys, indices.shape[0]
        places = _per_half(indices[:, :moving], num_subkeys).flatten()
        sums = probabilities.new_zeros(2 * num_subkeys).index_add_(0, places, probabilities.flatten())
        return sums.div_(groups // 2 * moving).view(2, num_subkeys)

    def strengths(self, kept: KeptSubKeys, probabilities: Tensor, means: Tensor, moving: int) -> Tensor:
        """c [G, M, k]: how strongly each kept pair of the first `moving` tokens moves its sub-key, 0 for the others."""
        groups, tokens, topk = kept.costs.shape
        step = self.options.key_lr / (groups // 2 * moving)
        slopes = _slope(means.flatten())[_per_half(kept.indices[:, :moving], self.rows.num_subkeys)]
        expected = (probabilities * slopes).sum(-1, keepdim=True)
        strengths = (slopes - expected).mul_(probabilities).mul_(step)
        if self.options.score != "dot_product":
            strengths.mul_(2).div_(kept.costs[:, :moving] + IDW_EPSILON)
        if moving == tokens:
            return strengths
        return torch.cat([strengths, strengths.new_zeros(groups, tokens - moving, topk)], 1)

    def move(self, queries: Tensor, sub_keys: Tensor, kept: KeptSubKeys, strengths: Tensor, readers: Readers) -> Tensor:
        """The sub-keys [G, n', h] less the sum of c * direction over their readers."""
        directions = kept.directions
        if directions is None:
            rows = gather_sub_keys(sub_keys, self.rows.local(kept.indices)[0])
            directions = _directions(queries, rows, self.options.score)
        return sub_keys - _sum_per_sub_key(strengths, directions, readers, self.rows)

    def backward(
        self, queries: Tensor, piece: KeyPiece, saved: SavedPiece, grad_moved: Tensor | None
    ) -> SparsePieceBackward:
        """Begin the backward of a piece; `grad_moved` [G, n', h] is None if nothing depends on the moved sub-keys."""
        return SparsePieceBackward(self.options, queries, saved, grad_moved)


class SparsePieceBackward:
    """Backward of one piece. Rows of sub-keys are gathered once for all its steps."""

    def __init__(self, options: KeyOptions, queries: Tensor, saved: SavedPiece, grad_moved: Tensor | None) -> None:
        self.options, self.saved, self.grad_moved = options, saved, grad_moved
        self.positions, self.foreign = options.rows.local(saved.indices)
        rows = gather_sub_keys(saved.sub_keys, self.positions)
        self.directions = _directions(queries, rows, options.score)
        self.along = rows  # what a score falls along: q - K in the place of K, or K
        self.density = 1 / (saved.costs + IDW_EPSILON) if options.score != "dot_product" else None

    def strength_gradients(self) -> Tensor:
        """gamma [G, M, k], the gradient of c, for the sub-keys that are here; 0 for others."""
        assert self.grad_moved is not None
        gradients, tokens = torch.empty_like(self.saved.costs), self.positions.shape[1]
        # In blocks: the gradients of all kept sub-keys would be as large as the directions.
        step = block_length(self.directions[:, 0].numel(), tokens, self.directions.device)
        for start in range(0, tokens, step):
            block = slice(start, start + step)
            rows = gather_sub_keys(self.grad_moved, self.positions[:, block])
            torch.sum(rows.mul_(self.directions[:, block]), -1, out=gradients[:, block])
        return only_owned(gradients.neg_(), self.foreign)

    def token_gradients(self, grad_scores: Tensor, grad_queries: Tensor, grad_strengths: Tensor | None) -> Tensor:
        """Add the gradients of the queries, the part from the sub-keys here, to `grad_queries`.

        Args:
            grad_scores: [M, heads * k], of the slots' scores.
            grad_queries: [G, M, h], a part of that of all queries.
            grad_strengths: [G, M, k], of c; None if the sub-keys did not move or nothing depends on it.

        Returns:
            Weights [G, M, k]: the gradient of a sub-key is minus the sum of weight * direction over its readers.
        """
        saved, density = self.saved, self.density
        grad_kept = self._kept_score_gradients(grad_scores)
        grad_costs = None
        if grad_strengths is not None:
            moving = saved.probabilities.shape[1]
            grad_y = grad_strengths if density is None else 2 * density * grad_strengths
            grad_kept[:, :moving] += self._second_derivative(grad_y[:, :moving])
            if density is not None:
                grad_costs = -density * saved.strengths * grad_strengths
        if density is None:
            weights = -grad_kept
        else:
            # s = -log(1e-3 + d) and d = |delta|^2
            of_scores = -density * grad_kept
            weights = 2 * (of_scores if grad_costs is None else of_scores + grad_costs)
        weights = only_owned(weights, self.foreign)
        pairs = torch.arange(weights.numel(), device=weights.device)
        gradients = _sum_per_token(weights, self.along.flatten(0, 2), pairs)
        if density is None:
            gradients.neg_()
        grad_queries += gradients
        if grad_strengths is not None:
            assert self.grad_moved is not None
            rows = number_in_groups(self.positions, self.grad_moved.shape[1])
            grad_queries -= _sum_per_token(self._owned_strengths(), self.grad_moved.flatten(0, 1), rows)
        return weights

    def sub_key_gradients(self, weights: Tensor, readers: Readers) -> Tensor:
        """Gradient of the sub-keys before the piece [G, n', h]."""
        gradients = _sum_per_sub_key(weights, self.directions, readers, self.options.rows).neg()
        if self.grad_moved is None:
            return gradients
        gradients += self.grad_moved
        if self.density is not None and self.saved.strengths.numel():
            # K' = K - c (q - K) contains K twice.
            total = torch.zeros_like(self.saved.sub_keys[..., 0])
            total.scatter_add_(1, self.positions.flatten(1), self._owned_strengths().flatten(1))
            gradients += self.grad_moved * total.unsqueeze(-1)
        return gradients

    def _owned_strengths(self) -> Tensor:
        return only_owned(self.saved.strengths, self.foreign)

    def _kept_score_gradients(self, grad_scores: Tensor) -> Tensor:
        """Gradient of slot scores [M, heads * k] added up for the kept scores of both halves [G, M, k]."""
        _, heads, tokens, topk = self.saved.positions.shape
        per_head = grad_scores.view(tokens, heads, topk).transpose(0, 1)
        gradients = grad_scores.new_zeros(heads, 2, tokens, topk)
        gradients.transpose(0, 1).scatter_add_(-1, self.saved.positions, per_head.expand(2, -1, -1, -1))
        return gradients.view(2 * heads, tokens, topk)

    def _second_derivative(self, grad_y: Tensor) -> Tensor:
        """Gradient of y [G, moving, k] to the kept scores, through P, the mean P and u."""
        probabilities, mean = self.saved.probabilities, self.saved.means.flatten()
        groups, moving, _ = probabilities.shape
        readers = groups // 2 * moving
        places = _per_half(self.saved.indices[:, :moving], self.options.rows.num_subkeys)
        slopes = _slope(mean)[places]
        expected = (probabilities * slopes).sum(-1, keepdim=True)
        weighted = grad_y * (self.options.key_lr / readers)
        balance = -(weighted * probabilities).sum(-1, keepdim=True)
        grad_probabilities = weighted * (slopes - expected) + balance * slopes
        grad_slopes = torch.zeros_like(mean)
        grad_slopes.index_add_(0, places.flatten(), ((weighted + balance) * probabilities).flatten())
        shifted = mean + ENTROPY_EPSILON
        grad_mean = grad_slopes * (1 / shifted + ENTROPY_EPSILON / shifted.square())
        grad_probabilities += (grad_mean / readers)[places]
        return probabilities * (grad_probabilities - (probabilities * grad_probabilities).sum(-1, keepdim=True))
