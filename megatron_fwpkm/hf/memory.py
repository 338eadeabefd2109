"""Fast-weight Product Key Memory (arXiv 2601.00671) in plain torch, for reading a text as a stream.

This file ships inside exported models. Shapes: B sequences that share one memory, T tokens,
H heads, n sub-keys per half, k slots per head, C tokens per chunk, L tokens of lookahead; [B, T, ...] throughout.

A token is read with the tables as they are and returned at once. It then waits until the token L later is known,
because that token's value is what its slots learn. When C such pairs are complete they are read again with the
current tables and written. How a text is cut into calls does not matter: the tables and all reads come out the same.

Everything is differentiable: with gradients enabled the tables are replaced (dense autograd), without they are
written in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import in_full_precision

IDW_EPSILON = 1e-3
"""Added to the squared distance inside the logarithm of the inverse-distance score."""
ENTROPY_EPSILON = 1e-8
"""Added to a probability inside the logarithm of the addressing loss."""
MEMORY_MODES = ("on", "frozen", "off")
"""on: read and write. frozen: read what was written so far, write nothing. off: read the initial memory."""


@dataclass(frozen=True)
class MemorySettings:
    """The numbers that define reads and writes; names as in the model's configuration."""

    topk: int = 8
    chunk_size: int = 512
    lookahead: int = 1
    inner_lr: float = 1.0
    addressing_weight: float = 1.0
    score: str = "idw"


class Reading(NamedTuple):
    """What a read of M = B*T tokens found; P = 2*H half-heads."""

    retrieved: Tensor
    """[B, T, value_dim]"""
    slot_indices: Tensor
    """[M, H*k]"""
    slot_weights: Tensor
    """[M, H*k], a softmax over all heads and slots of a token."""
    half_queries: Tensor
    """[P, M, key_dim/2]"""
    half_indices: Tensor
    """[P, M, k], ascending."""
    half_scores: Tensor
    """[P, M, k]"""

    def first(self, count: int) -> Reading:
        """Only the first ``count`` tokens of every sequence."""
        batch, tokens, _ = self.retrieved.shape
        if count == tokens:
            return self
        per_token = (field.unflatten(0, (batch, tokens))[:, :count].flatten(0, 1) for field in self[1:3])
        per_half = (field.unflatten(1, (batch, tokens))[:, :, :count].flatten(1, 2) for field in self[3:])
        return Reading(self.retrieved[:, :count], *per_token, *per_half)


def _read_halves(halves: Tensor, sub_keys: Tensor, settings: MemorySettings) -> tuple[Tensor, Tensor]:
    """Indices (ascending) and scores [P, M, k] of the nearest sub-keys [P, n, d] of every half query [P, M, d]."""
    num_subkeys = sub_keys.shape[1]
    with torch.no_grad():
        products = torch.bmm(halves, sub_keys.transpose(1, 2))
        if settings.score == "idw":
            products = products.mul_(2).sub_(sub_keys.square().sum(-1).unsqueeze(1))
        indices = products.topk(settings.topk, dim=-1, sorted=False).indices.sort(dim=-1).values
        first_rows = torch.arange(0, sub_keys.shape[0] * num_subkeys, num_subkeys, device=indices.device)
        rows = indices + first_rows[:, None, None]
    chosen = F.embedding(rows, sub_keys.flatten(0, 1))
    if settings.score == "dot_product":
        return indices, torch.matmul(chosen, halves.unsqueeze(-1)).squeeze(-1)
    # Distances of the chosen keys as sums of squared differences: the expanded form loses all digits near a key.
    return indices, -torch.log(IDW_EPSILON + (halves.unsqueeze(2) - chosen).square().sum(-1))


@in_full_precision
def read_tables(queries: Tensor, sub_keys: Tensor, values: Tensor, settings: MemorySettings) -> Reading:
    """Read every token from the tables (DESIGN 2.1).

    Args:
        queries: [B, T, H, key_dim].
        sub_keys: [H, 2, n, key_dim/2].
        values: [n*n, value_dim].
        settings: the memory's numbers.

    Returns:
        The reads and where they came from; gradients flow through slot weights and table rows, not the choice.
    """
    batch, tokens, heads, key_dim = queries.shape
    num_subkeys, topk = sub_keys.shape[2], settings.topk
    halves = queries.reshape(batch * tokens, heads * 2, key_dim // 2).transpose(0, 1).contiguous()
    half_indices, half_scores = _read_halves(halves, sub_keys.flatten(0, 1), settings)
    first, second = half_scores.unflatten(0, (heads, 2)).unbind(1)
    pair_scores = (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2)
    first, second = half_indices.unflatten(0, (heads, 2)).unbind(1)
    pair_slots = (first.unsqueeze(-1) * num_subkeys + second.unsqueeze(-2)).flatten(-2)
    # Pairs stand in ascending order of their slots, so a stable sort gives equal scores to the lowest slot.
    order = pair_scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :topk]
    slots = pair_slots.gather(-1, order).transpose(0, 1).flatten(1)
    weights = pair_scores.gather(-1, order).transpose(0, 1).flatten(1).softmax(-1)
    retrieved = F.embedding_bag(slots, values, per_sample_weights=weights, mode="sum")
    return Reading(retrieved.view(batch, tokens, -1), slots, weights, halves, half_indices, half_scores)


@in_full_precision
def sub_key_step(reading: Reading, sub_keys: Tensor, settings: MemorySettings) -> Tensor:
    """Gradient of the addressing loss with respect to the sub-keys, in closed form (DESIGN 2.3), [H, 2, n, key_dim/2].

    Only the k kept scores of a half matter. The loss is the negative entropy of the mean address, heads pooled.
    """
    half_heads, rows, _ = reading.half_scores.shape
    heads, _, num_subkeys, half_dim = sub_keys.shape
    probabilities = reading.half_scores.softmax(-1)
    per_half = reading.half_indices.unflatten(0, (heads, 2)).transpose(0, 1).flatten(1)
    pooled = probabilities.unflatten(0, (heads, 2)).transpose(0, 1).flatten(1)
    mean = pooled.new_zeros(2, num_subkeys).scatter_add(1, per_half, pooled) / (rows * heads)
    slope = torch.log(mean + ENTROPY_EPSILON) + mean / (mean + ENTROPY_EPSILON)
    slopes = slope.gather(1, per_half).unflatten(1, (heads, rows, -1)).transpose(0, 1).flatten(0, 1)
    centred = slopes - (probabilities * slopes).sum(-1, keepdim=True)
    coefficients = probabilities * centred / (rows * heads)
    if settings.score == "idw":
        coefficients = coefficients * (2 * reading.half_scores.exp())
    dense = coefficients.new_zeros(half_heads, rows, num_subkeys).scatter(2, reading.half_indices, coefficients)
    step = torch.bmm(dense.transpose(1, 2), reading.half_queries)
    if settings.score == "idw":
        step = step - dense.sum(1).unsqueeze(-1) * sub_keys.flatten(0, 1)
    return step.view(heads, 2, num_subkeys, half_dim)


@in_full_precision
def value_step(
    reading: Reading, targets: Tensor, weights: Tensor, num_samples: float | Tensor, settings: MemorySettings
) -> tuple[Tensor, Tensor]:
    """Descent step of the memorization loss on the values (DESIGN 2.2), as rows to add.

    Args:
        reading: of all tokens of the chunk; all of them count as readers of their slots.
        targets: [B, W, value_dim] for the first W tokens of the chunk, the ones that are written.
        weights: [B, W], gate times mask.
        num_samples: N, the number of samples the loss is a mean over.
        settings: the memory's numbers.

    Returns:
        rows [R] (with repetitions) and what to add to them [R, value_dim].
    """
    batch, written, width = targets.shape
    slots_per_token = reading.slot_indices.shape[1]
    _, inverse, counts = reading.slot_indices.unique(return_inverse=True, return_counts=True)
    rows, inverse, slot_weights = (
        per_token.view(batch, -1, slots_per_token)[:, :written]
        for per_token in (reading.slot_indices, inverse, reading.slot_weights)
    )
    errors = (reading.retrieved[:, :written] - targets) * weights.unsqueeze(-1)
    scale = settings.inner_lr * slots_per_token * num_samples / (batch * written)
    coefficients = slot_weights * (scale / counts.to(errors.dtype))[inverse]
    return rows.flatten(), -(coefficients.unsqueeze(-1) * errors.unsqueeze(2)).view(-1, width)


@dataclass(frozen=True)
class Tokens:
    """Tokens on their way into the memory."""

    queries: Tensor
    """[B, T, H, key_dim]"""
    targets: Tensor
    """[B, T, value_dim]; a token's slots learn the target of the token L later."""
    gates: Tensor | None
    """[B, T] weights of the writes; None for 1."""
    mask: Tensor | None
    """[B, T], 0 where a token must not be written; None for 1."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """Apply a function of [B, T, ...] to every field that is there."""
        gates = None if self.gates is None else function(self.gates)
        mask = None if self.mask is None else function(self.mask)
        return Tokens(function(self.queries), function(self.targets), gates, mask)

    def cut(self, start: int, stop: int | None = None) -> Tokens:
        """The tokens [start, stop) of every sequence."""
        return self.map(lambda field: field[:, start:stop])

    def then(self, later: Tokens) -> Tokens:
        """These tokens followed by later ones of the same sequences."""

        def joined(ours: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if ours is None and theirs is None:
                return None
            ours = self.targets.new_ones(self.targets.shape[:2]) if ours is None else ours
            theirs = later.targets.new_ones(later.targets.shape[:2]) if theirs is None else theirs
            return torch.cat([ours, theirs], 1)

        return Tokens(
            torch.cat([self.queries, later.queries], 1),
            torch.cat([self.targets, later.targets], 1),
            joined(self.gates, later.gates),
            joined(self.mask, later.mask),
        )

    def write_weights(self) -> Tensor:
        """Gate times mask, [B, T]."""
        weights = self.targets.new_ones(self.targets.shape[:2]) if self.gates is None else self.gates
        return weights if self.mask is None else weights * self.mask

    def __len__(self) -> int:
        return self.queries.shape[1]


class FastWeights:
    """The tables of one layer. They begin as references to the initial memory and become a copy at the first write."""

    def __init__(self, sub_keys: Tensor, values: Tensor, settings: MemorySettings):
        self.settings = settings
        self.initial = (sub_keys, values)
        self.sub_keys, self.values = sub_keys, values
        self._private = False

    def read(self, queries: Tensor) -> Reading:
        """Read tokens [B, T, H, key_dim] with the tables as they are."""
        return read_tables(queries, self.sub_keys, self.values, self.settings)

    def write(self, chunk: Tokens, reading: Reading, targets: Tensor) -> None:
        """Write the first tokens of a chunk towards their targets and move the sub-keys by the whole chunk.

        Args:
            chunk: all tokens of the chunk.
            reading: of all of them with the current tables.
            targets: [B, W, value_dim] for the first W tokens.
        """
        settings, written = self.settings, targets.shape[1]
        if not settings.inner_lr:
            return
        num_samples: float | Tensor = reading.slot_indices.shape[0]
        if chunk.mask is not None:
            num_samples = (chunk.mask[:, :written] > 0).sum().to(targets.dtype)
        weights = chunk.write_weights()[:, :written]
        rows, additions = value_step(reading, targets, weights, num_samples, settings)
        key_lr = settings.inner_lr * settings.addressing_weight
        if torch.is_grad_enabled():
            self.values = self.values.index_add(0, rows, additions)
            if key_lr:
                self.sub_keys = self.sub_keys - key_lr * sub_key_step(reading, self.sub_keys, settings)
            self._private = False
            return
        # Outside inference mode torch refuses to write what was made inside it.
        foreign = self.values.is_inference() and not torch.is_inference_mode_enabled()
        if foreign or not self._private:
            self.sub_keys, self.values, self._private = self.sub_keys.clone(), self.values.clone(), True
        if key_lr:
            self.sub_keys.sub_(sub_key_step(reading, self.sub_keys, settings), alpha=key_lr)
        self.values.index_add_(0, rows, additions)

    def reset(self) -> None:
        """Put the initial memory back."""
        self.sub_keys, self.values = self.initial
        self._private = False


class MemoryStream(FastWeights):
    """The memory of one layer along a text: its tables and the tokens that wait to be written."""

    def __init__(self, sub_keys: Tensor, values: Tensor, settings: MemorySettings):
        super().__init__(sub_keys, values, settings)
        self.pending: Tokens | None = None

    @property
    def num_pending(self) -> int:
        """Waiting tokens per sequence."""
        return 0 if self.pending is None else len(self.pending)

    def step(self, tokens: Tokens, mode: str = "on") -> Tensor:
        """Read the next tokens of the text and, in mode ``on``, write whatever chunks they complete.

        Args:
            tokens: the next T tokens of the B sequences.
            mode: one of MEMORY_MODES.

        Returns:
            [B, T, value_dim]: what each token retrieved, with the tables as they stood when it arrived.

        Raises:
            ValueError: the number of sequences differs from that of the waiting tokens.
        """
        if mode != "on":
            tables = (self.sub_keys, self.values) if mode == "frozen" else self.initial
            return read_tables(tokens.queries, *tables, self.settings).retrieved
        self._check_batch(tokens)
        window = self.settings.chunk_size + self.settings.lookahead
        retrieved, start = [], 0
        while start < len(tokens):
            waiting = self.num_pending
            piece = tokens.cut(start, start + window - waiting)
            self.pending = piece if self.pending is None else self.pending.then(piece)
            if self.num_pending == window:
                # One read serves both: what the new tokens get, and what defines the write.
                reading = self.read(self.pending.queries)
                retrieved.append(reading.retrieved[:, waiting:])
                self._write_waiting(self.settings.chunk_size, reading)
            else:
                retrieved.append(self.read(piece.queries).retrieved)
            start += len(piece)
        self._detach_pending_storage()
        return torch.cat(retrieved, 1) if retrieved else tokens.targets

    def flush(self) -> None:
        """Write the waiting tokens whose targets are known, as one smaller chunk; the last L keep waiting."""
        complete = self.num_pending - self.settings.lookahead
        if self.pending is not None and complete > 0:
            self._write_waiting(complete, self.read(self.pending.queries[:, :complete]))

    def end_text(self) -> None:
        """Flush, then drop the last L tokens: what follows is another text and not their target."""
        self.flush()
        self.pending = None

    def reset(self) -> None:
        """Put the initial memory back and forget the waiting tokens."""
        super().reset()
        self.pending = None

    def clone(self) -> MemoryStream:
        """An independent copy: writes to one are not seen by the other. The tables are copied when either writes."""
        twin = MemoryStream(*self.initial, self.settings)
        twin.sub_keys, twin.values, twin.pending = self.sub_keys, self.values, self.pending
        self._private = twin._private = False
        return twin

    def select(self, indices: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the waiting tokens; the tables are shared by all of them."""
        if self.pending is not None:
            self.pending = self.pending.map(lambda field: field[indices])

    def _write_waiting(self, count: int, reading: Reading) -> None:
        """Write the first ``count`` waiting tokens; ``reading`` is of them (or more) with the current tables."""
        assert self.pending is not None, "nothing waits"
        chunk, lookahead = self.pending.cut(0, count), self.settings.lookahead
        targets = self.pending.targets[:, lookahead : count + lookahead]
        self.write(chunk, reading.first(count), targets)
        self.pending = self.pending.cut(count) if self.num_pending > count else None

    def _check_batch(self, tokens: Tokens) -> None:
        if self.pending is not None and self.pending.queries.shape[0] != tokens.queries.shape[0]:
            raise ValueError(
                f"the cache holds waiting tokens of {self.pending.queries.shape[0]} sequences and this call has "
                f"{tokens.queries.shape[0]}: end the earlier text with cache.end_text() first (its memory stays), "
                f"or go on with the same sequences"
            )

    def _detach_pending_storage(self) -> None:
        """Copy the few waiting tokens, so that they do not keep the tensors of a long call alive."""
        if self.pending is not None and not torch.is_grad_enabled():
            self.pending = self.pending.map(Tensor.clone)


def read_and_write_chunks(tokens: Tokens, tables: FastWeights) -> Tensor:
    """The arithmetic of training with boundary ``drop``: the last L tokens of every chunk are never written.

    Args:
        tokens: T tokens of B sequences, from the start of their text.
        tables: the memory; left as it was before the last chunk's write, which nothing reads.

    Returns:
        [B, T, value_dim].
    """
    settings = tables.settings
    retrieved = []
    for start in range(0, len(tokens), settings.chunk_size):
        chunk = tokens.cut(start, start + settings.chunk_size)
        reading = tables.read(chunk.queries)
        retrieved.append(reading.retrieved)
        if start + settings.chunk_size < len(tokens):
            tables.write(chunk, reading, chunk.targets[:, settings.lookahead :])
    return torch.cat(retrieved, 1) if retrieved else tokens.targets
