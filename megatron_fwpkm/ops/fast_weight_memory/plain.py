"""The memory in short, readable torch: `implementation="plain"`, which ships inside exported models.

Shapes: B sequences that share one memory, T tokens, H heads, n sub-keys per half, k slots per head; M = B * T tokens.

With gradients enabled the tables are replaced at a write (dense autograd, exact in all inputs), without they are
written in place, if need be in a copy that is made at the first write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..chunk_pieces import Piece
from ..product_key.epsilons import ENTROPY_EPSILON, IDW_EPSILON
from ..row_overlay import RowOverlay
from ..state import FastWeightState
from ..stream import Stream
from ..undo_log import UndoLog
from .memory_call import Call, ChainResult
from .options import MemoryOptions

_GROUP = 8
"""Sub-keys of a group, of which the largest product is found first."""


class Reading(NamedTuple):
    """What a read of M tokens found; P = 2 * H half-heads."""

    retrieved: Tensor
    """[B, T, value_dim]"""
    slot_indices: Tensor
    """[M, H * k]"""
    rows: Tensor
    """[M, H * k], where these slots are in the table that was read: the slots themselves, or places in an overlay."""
    slot_weights: Tensor
    """[M, H * k], a softmax over all heads and slots of a token."""
    half_queries: Tensor
    """[P, M, key_dim / 2]"""
    half_indices: Tensor
    """[P, M, k], ascending."""
    half_scores: Tensor
    """[P, M, k]"""

    def first(self, count: int) -> Reading:
        """Only the first `count` tokens of every sequence."""
        batch, tokens, _ = self.retrieved.shape
        if count == tokens:
            return self
        per_token = (field.unflatten(0, (batch, tokens))[:, :count].flatten(0, 1) for field in self[1:4])
        per_half = (field.unflatten(1, (batch, tokens))[:, :, :count].flatten(1, 2) for field in self[4:])
        return Reading(self.retrieved[:, :count], *per_token, *per_half)


def _largest(products: Tensor, topk: int) -> Tensor:
    """Indices of the `topk` largest of [P, M, n], in any order.

    They stand in the `topk` groups with the largest maxima, so that a CPU, which sorts one by one, sorts few.
    """
    groups = products.shape[-1] // _GROUP
    if products.device.type != "cpu" or products.shape[-1] % _GROUP or groups <= topk:
        return products.topk(topk, dim=-1, sorted=False).indices
    chosen = products.unflatten(-1, (_GROUP, groups)).amax(-2).topk(topk, dim=-1, sorted=False).indices
    members = torch.arange(0, products.shape[-1], groups).unsqueeze(-1) + chosen.unsqueeze(-2)
    members = members.flatten(-2)
    return members.gather(-1, products.gather(-1, members).topk(topk, dim=-1, sorted=False).indices)


def _read_halves(halves: Tensor, sub_keys: Tensor, options: MemoryOptions) -> tuple[Tensor, Tensor]:
    """Indices (ascending) and scores [P, M, k] of the nearest sub-keys [P, n, d] of every half query [P, M, d]."""
    num_subkeys = sub_keys.shape[1]
    with torch.no_grad():
        products = torch.bmm(halves, sub_keys.transpose(1, 2))
        if options.score == "idw":
            products = products.mul_(2).sub_(sub_keys.square().sum(-1).unsqueeze(1))
        indices = _largest(products, options.topk).sort(dim=-1).values
        first_rows = torch.arange(0, sub_keys.shape[0] * num_subkeys, num_subkeys, device=indices.device)
        rows = indices + first_rows[:, None, None]
    chosen = F.embedding(rows, sub_keys.flatten(0, 1))
    if options.score == "dot_product":
        return indices, torch.matmul(chosen, halves.unsqueeze(-1)).squeeze(-1)
    # Distances of the chosen keys as sums of squared differences: the expanded form loses all digits near a key.
    return indices, -torch.log(IDW_EPSILON + (halves.unsqueeze(2) - chosen).square().sum(-1))


def read_tables(
    queries: Tensor,
    sub_keys: Tensor,
    values: Tensor,
    options: MemoryOptions,
    find_rows: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Reading:
    """Read every token from the tables (DESIGN 2.1).

    Args:
        queries: [B, T, H, key_dim].
        sub_keys: [H, 2, n, key_dim / 2].
        values: [n * n, value_dim].
        options: the memory's numbers.
        find_rows: for values that are elsewhere, from slots [M, H * k] to their rows in a table, and that table.

    Returns:
        The reads and where they came from; gradients flow through slot weights and table rows, not the choice.
    """
    batch, tokens, heads, key_dim = queries.shape
    num_subkeys, topk = sub_keys.shape[2], options.topk
    halves = queries.reshape(batch * tokens, heads * 2, key_dim // 2).transpose(0, 1).contiguous()
    half_indices, half_scores = _read_halves(halves, sub_keys.flatten(0, 1), options)
    first, second = half_scores[0::2], half_scores[1::2]
    pair_scores = (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2)
    first, second = half_indices[0::2], half_indices[1::2]
    pair_slots = (first.unsqueeze(-1) * num_subkeys + second.unsqueeze(-2)).flatten(-2)
    # Pairs stand in ascending order of their slots, so a stable sort gives equal scores to the lowest slot.
    order = pair_scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :topk]
    slots = pair_slots.gather(-1, order).transpose(0, 1).flatten(1)
    weights = pair_scores.gather(-1, order).transpose(0, 1).flatten(1).softmax(-1)
    rows, table = (slots, values) if find_rows is None else find_rows(slots)
    retrieved = F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
    return Reading(retrieved.view(batch, tokens, -1), slots, rows, weights, halves, half_indices, half_scores)


def read_state(queries: Tensor, state: FastWeightState, options: MemoryOptions) -> Reading:
    """`read_tables` of a state, with or without an overlay; nothing is added to it."""
    overlay = state.overlay
    find_rows = None if overlay is None else partial(_gathered, overlay)
    return read_tables(queries, state.sub_keys, state.values, options, find_rows)


def _gathered(overlay: RowOverlay, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of slots [M, J] as a table of their own, and their places in it."""
    return torch.arange(slots.numel(), device=slots.device).view_as(slots), overlay.gather(slots.flatten())


def sub_key_step(reading: Reading, sub_keys: Tensor, options: MemoryOptions) -> tuple[Tensor, Tensor]:
    """Gradient of the addressing loss with respect to the sub-keys, in closed form (DESIGN 2.3).

    Only the k kept scores of a half matter. The loss is the negative entropy of the mean address, heads pooled.

    Returns:
        The gradient [H, 2, n, key_dim / 2] and the loss, without gradient.
    """
    half_heads, rows, _ = reading.half_scores.shape
    heads, _, num_subkeys, half_dim = sub_keys.shape
    probabilities = reading.half_scores.softmax(-1)
    per_half = reading.half_indices.unflatten(0, (heads, 2)).transpose(0, 1).flatten(1)
    pooled = probabilities.unflatten(0, (heads, 2)).transpose(0, 1).flatten(1)
    mean = pooled.new_zeros(2, num_subkeys).scatter_add(1, per_half, pooled) / (rows * heads)
    logarithm = torch.log(mean + ENTROPY_EPSILON)
    slope = logarithm + mean / (mean + ENTROPY_EPSILON)
    slopes = slope.gather(1, per_half).unflatten(1, (heads, rows, -1)).transpose(0, 1).flatten(0, 1)
    centred = slopes - (probabilities * slopes).sum(-1, keepdim=True)
    coefficients = probabilities * centred / (rows * heads)
    if options.score == "idw":
        coefficients = coefficients * (2 * reading.half_scores.exp())
    dense = coefficients.new_zeros(half_heads, rows, num_subkeys).scatter(2, reading.half_indices, coefficients)
    step = torch.bmm(dense.transpose(1, 2), reading.half_queries)
    if options.score == "idw":
        step = step - dense.sum(1).unsqueeze(-1) * sub_keys.flatten(0, 1)
    return step.view(heads, 2, num_subkeys, half_dim), (mean * logarithm).detach().sum()


def value_step(
    reading: Reading, errors: Tensor, readers: Tensor, num_samples: float | Tensor, options: MemoryOptions
) -> tuple[Tensor, Tensor]:
    """Descent step of the memorization loss on the values (DESIGN 2.2), as rows to add.

    Args:
        reading: of the W tokens of every sequence that are written, and maybe of later ones.
        errors: [B, W, value_dim], read minus target, times gate and mask.
        readers: per row of the table, how many reads of it its mean is over.
        num_samples: N, the number of samples the loss is a mean over.
        options: the memory's numbers.

    Returns:
        rows [R] (with repetitions) and what to add to them [R, value_dim].
    """
    batch, written, width = errors.shape
    slots_per_token = reading.rows.shape[1]
    rows, slot_weights = (
        per_token.view(batch, -1, slots_per_token)[:, :written] for per_token in (reading.rows, reading.slot_weights)
    )
    scale = options.inner_lr * slots_per_token * num_samples / (batch * written)
    coefficients = slot_weights * (scale / readers[rows].to(errors.dtype))
    return rows.flatten(), (-coefficients.unsqueeze(-1) * errors.unsqueeze(2)).view(-1, width)


class _Tables:
    """The tables along the pieces of a call. With an overlay `values` are its rows."""

    def __init__(self, call: Call, in_place: bool, can_be_undone: bool):
        self.state, self.in_place, self.replaced = call.state, in_place, torch.is_grad_enabled()
        self.sub_keys, self.values, self.overlay = call.state.sub_keys, call.state.table, call.state.overlay
        self.log = UndoLog() if in_place and can_be_undone else None
        self._may_write = in_place
        if in_place and self.replaced:
            # Backward needs the tables as they were when they were read.
            self.sub_keys, self.values = self.sub_keys.clone(), self.values.clone()

    def read(self, queries: Tensor, options: MemoryOptions, writes: bool) -> Reading:
        """Read [B, T, H, key_dim], and with `writes` get the rows ready for `add_to_values`."""
        find_rows = None
        if self.overlay is not None:
            find_rows = self._own_rows if writes else self._gathered_rows
        return read_tables(queries, self.sub_keys, self.values, options, find_rows)

    def _own_rows(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Places of slots in the overlay, and its rows; those that it lacks are copied from the base."""
        self._prepare()
        assert self.overlay is not None
        before = len(self.overlay)
        rows = self.overlay.own(slots)
        if self.replaced:
            self.values = torch.cat(
                [self.values, self.overlay.base.index_select(0, self.overlay.slots[before:].clone())]
            )
        else:
            self.values = self.overlay.table
        return rows, self.values

    def _gathered_rows(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        assert self.overlay is not None
        if self.replaced:  # rows that were written are part of the graph
            places, table = _gathered(self.overlay, slots)
            own, row = self.overlay.find(slots.flatten())
            return places, torch.where(own.unsqueeze(-1), self.values[row], table) if len(self.values) else table
        return _gathered(self.overlay, slots)

    def add_to_values(self, rows: Tensor, additions: Tensor, read: Tensor) -> None:
        """Add [R, value_dim] to rows [R], which may repeat and are among the rows that were `read`."""
        self._prepare()
        if self.log is not None:
            overwritten = read.unique()
            self.log.add(overwritten, self.values.detach().index_select(0, overwritten))
        if self.replaced:
            self.values = self.values.index_add(0, rows, additions)
        else:
            self.values.index_add_(0, rows, additions)

    def move_sub_keys(self, gradient: Tensor, step_size: float) -> None:
        """One step of gradient descent."""
        self._prepare()
        if self.log is not None and self.log.old_sub_keys is None:
            self.log = UndoLog(self.log.rows, self.log.old_values, self.sub_keys.detach().clone())
        if self.replaced:
            self.sub_keys = self.sub_keys - step_size * gradient
        else:
            self.sub_keys.sub_(gradient, alpha=step_size)

    def finish(self) -> None:
        """Put tables that were replaced where they belong."""
        if not self.replaced:
            return
        if self.overlay is not None and self.overlay is not self.state.overlay:
            self.overlay.replace(self.values.detach())
        if self.in_place:
            with torch.no_grad():
                self.state.sub_keys.copy_(self.sub_keys)
                self.state.table.copy_(self.values)

    def _prepare(self) -> None:
        """Before the first write, copy what must stay as it is."""
        if self._may_write:
            return
        self._may_write = True
        if self.overlay is not None:
            self.overlay = self.overlay.copy()
            self.values = self.overlay.table
        elif not self.replaced:
            self.values = self.values.clone()
        if not self.replaced:
            self.sub_keys = self.sub_keys.clone()


class _Outputs:
    """What the pieces of a call give back, in their order."""

    def __init__(self, stream: Stream):
        self.reads: list[tuple[Tensor, ...]] = []
        self.memorization_losses = [stream.targets.new_empty(len(stream.targets), 0)]
        self.addressing_losses = [stream.targets.new_empty(0)]

    def add(self, reading: Reading, first: int, heads: int) -> None:
        """Add the reads of the tokens from `first` on."""
        shape = (*reading.retrieved.shape[:2], heads, -1)
        found = reading.retrieved, reading.slot_indices.view(shape), reading.slot_weights.view(shape)
        self.reads.append(tuple(field[:, first:] for field in found) if first else found)

    def result(self, tables: _Tables) -> ChainResult:
        """All of it, with the tables after the call."""
        retrieved, slot_indices, slot_weights = (_joined(list(parts), 1) for parts in zip(*self.reads, strict=True))
        losses = _joined(self.memorization_losses, 1), _joined(self.addressing_losses, 0)
        values = tables.values.detach() if tables.overlay is None else tables.state.values
        return ChainResult(
            retrieved, slot_indices, slot_weights, *losses, tables.sub_keys.detach(), values, tables.log, tables.overlay
        )


def run_plain(
    call: Call, in_place: bool, can_be_undone: bool = True, observe: Callable[[Piece, Reading], None] | None = None
) -> ChainResult:
    """Run all pieces of a call.

    Args:
        call: what to do.
        in_place: write the tables of the state; otherwise they stay as they are.
        can_be_undone: keep what writes in place overwrite, which takes time.
        observe: is called with every piece and what its tokens read, before the piece is written.

    Returns:
        The outputs and the tables after the call.
    """
    stream, options, outputs = call.stream, call.options, _Outputs(call.stream)
    tables = _Tables(call, in_place, can_be_undone)
    weights = stream.write_weights()
    for piece in call.pieces:
        writes = bool(piece.num_written and options.inner_lr)
        reading = tables.read(stream.queries[:, piece.start : piece.stop], options, writes)
        outputs.add(reading, piece.emit_start - piece.start, stream.queries.shape[2])
        if observe is not None:
            observe(piece, reading)
        gradient = None
        if piece.key_stop > piece.start:
            addressed = reading.first(piece.key_stop - piece.start)
            gradient, loss = sub_key_step(addressed, tables.sub_keys, options)
            outputs.addressing_losses.append(loss.view(1))
        if piece.num_written:
            written = slice(piece.start, piece.write_stop)
            targets = stream.targets[:, piece.start + options.lookahead : piece.write_stop + options.lookahead]
            errors = reading.retrieved[:, : piece.num_written] - targets
            outputs.memorization_losses.append((weights[:, written] * errors.square().mean(-1)).detach())
            if writes:
                errors = errors * weights[:, written].unsqueeze(-1)
                readers = _count_readers(reading, piece, stream, tables.values.shape[0])
                step = value_step(reading, errors, readers, _num_samples(stream, piece), options)
                tables.add_to_values(*step, reading.rows)
        if gradient is not None and options.key_lr:
            tables.move_sub_keys(gradient, options.key_lr)
    tables.finish()
    return outputs.result(tables)


def _joined(parts: list[Tensor], dimension: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dimension)


def _count_readers(reading: Reading, piece: Piece, stream: Stream, num_rows: int) -> Tensor:
    """How often every row of the table was read by the tokens that count, at least 1, [rows]."""
    by_token = reading.rows.unflatten(0, (len(stream.queries), -1))
    counted = by_token[:, piece.count_start - piece.start : piece.count_stop - piece.start]
    return torch.bincount(counted.flatten(), minlength=num_rows).clamp_(min=1)


def _num_samples(stream: Stream, piece: Piece) -> float | Tensor:
    """The N of DESIGN 2.2."""
    if stream.mask is None:
        return len(stream.queries) * piece.num_samples
    return (stream.mask[:, piece.start : piece.write_stop] > 0).sum().to(stream.mask.dtype)
