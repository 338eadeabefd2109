"""Which slots every piece touches, and how its (token, slot) pairs sort by slot: one sort for a whole call.

Shapes: R rows read by all pieces, S segments (a segment is one slot touched by one piece), J = heads * topk pairs per
row, pairs counted row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ValuePiece(NamedTuple):
    """Row numbers of one piece, where a row is a (token, sequence) pair and time comes first.

    Attributes:
        start: first of the piece's rows among the rows read by all pieces.
        stop: one past its last.
        emit_start: the first row that is returned; all later rows of the piece are.
        write_stop: rows [start, write_stop) are written.
        count_start: the first row that counts as a reader of its slots.
        count_stop: one past the last that counts.
        token: row ``start``'s position in the stream (token * B + sequence).
    """

    start: int
    stop: int
    emit_start: int
    write_stop: int
    count_start: int
    count_stop: int
    token: int


class WritePlan(NamedTuple):
    """The sorted pairs of all pieces.

    Attributes:
        slots: [S] the slot of every segment; distinct within a piece.
        bounds: segments of piece p are [bounds[p], bounds[p + 1]).
        places: [R * J] segment of every pair, counted from the piece's first.
        order: [R * J] the pairs, sorted by piece and slot, rows ascending within a slot.
        segments: [R * J] segment of every pair, counted over all pieces.
        starts: [S] first sorted pair of every segment.
        counts: [S] readers of every segment that count, at least 1.
    """

    slots: Tensor
    bounds: list[int]
    places: Tensor
    order: Tensor
    segments: Tensor
    starts: Tensor
    counts: Tensor


def make_write_plan(slot_indices: Tensor, pieces: list[ValuePiece], num_slots: int) -> WritePlan:
    """Sort the pairs of all pieces by (piece, slot).

    Args:
        slot_indices: [R, J] int64.
        pieces: consecutive, covering all R rows.
        num_slots: rows of the table.

    Returns:
        The plan. The order of summation it defines is fixed: rows ascending.
    """
    width, device = slot_indices.shape[1], slot_indices.device
    lengths = torch.tensor([piece.stop - piece.start for piece in pieces], device=device)
    piece_of_row = torch.arange(len(pieces), device=device).repeat_interleave(lengths)
    pairs = (slot_indices + (piece_of_row * num_slots).unsqueeze(1)).flatten()
    ordered, order = pairs.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=is_first[1:])
    starts = is_first.nonzero().squeeze(1)
    segments = torch.empty_like(order)
    segments[order] = is_first.cumsum(0) - 1
    heads = ordered[starts]
    edges = torch.arange(len(pieces) + 1, device=device) * num_slots
    bounds = torch.searchsorted(heads, edges)
    counted = torch.zeros(slot_indices.shape[0], dtype=torch.long, device=device)
    for piece in pieces:
        counted[piece.count_start : piece.count_stop] = 1
    counts = torch.zeros_like(starts).index_add_(0, segments, counted.repeat_interleave(width)).clamp_(min=1)
    places = segments - bounds[piece_of_row].repeat_interleave(width)
    return WritePlan(heads % num_slots, bounds.tolist(), places, order, segments, starts, counts)
