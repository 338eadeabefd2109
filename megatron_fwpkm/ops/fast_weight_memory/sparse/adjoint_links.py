"""Which slots several pieces of a call read: only through these does the gradient of the table go from piece to piece.

Shapes: T rows read by all pieces, J = heads * topk, P = T * J pairs, S segments (a slot touched by a piece, see
`write_plan.py`), piece after piece.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..write_plan import AdjointPlan, ValuePiece, WritePlan


class Sources(NamedTuple):
    """The segments whose slots later pieces read, and their pairs that are written, in the order of the rows.

    Attributes:
        bounds: those of piece p are [bounds[p], bounds[p + 1]).
        rows: rows of the adjoint.
        pair_bounds: as `bounds`, for the pairs.
        pairs: their numbers, ascending.
        places: for each of these pairs its segment, counted from the piece's first of these.
        starts: [T + 1], where the pairs of a row begin.
    """

    bounds: list[int]
    rows: Tensor
    pair_bounds: list[int]
    pairs: Tensor
    places: Tensor
    starts: Tensor


class Sinks(NamedTuple):
    """The segments whose slots earlier pieces read (or all of them), and their pairs in the order of the plan.

    Attributes:
        bounds: those of piece p are [bounds[p], bounds[p + 1]).
        rows: rows of the adjoint.
        pair_bounds: as `bounds`, for the pairs.
        pairs: their numbers.
        starts: for every segment where its pairs begin.
    """

    bounds: list[int]
    rows: Tensor
    pair_bounds: list[int]
    pairs: Tensor
    starts: Tensor


class AdjointLinks:
    """Who hands the gradient of which row to whom.

    Attributes:
        num_rows: rows of the adjoint: the slots that at least two pieces read, or all of the call's.
        sources: what a piece takes from later ones.
        sinks: what it leaves for earlier ones.

    Args:
        plan: sorted pairs of all pieces.
        adjoint_plan: of the same call.
        pieces: of the same call.
        starts: [S], first sorted pair of every segment.
        wants_table: the gradient of the table before the call is asked for; then every row is needed.
    """

    def __init__(
        self, plan: WritePlan, adjoint_plan: AdjointPlan, pieces: list[ValuePiece], starts: Tensor, wants_table: bool
    ) -> None:
        width, numbers = plan.pair_slots.shape[1], plan.is_head.cumsum(0).sub_(1)
        rows = adjoint_plan.rows[plan.order[starts]]
        earlier, later = _read_elsewhere(rows)
        # Rows of slots that several pieces read, one number after the other; others are never looked at.
        kept = torch.zeros_like(adjoint_plan.slots).index_add_(0, rows, (earlier | later).long()).clamp_(max=1)
        if wants_table:
            kept.fill_(1)
            earlier.fill_(True)
        segment_of = torch.empty_like(numbers).scatter_(0, plan.order, numbers)
        written, left = later[segment_of], earlier[numbers]
        for piece in pieces:
            written[piece.write_stop * width : piece.stop * width] = False
        last_segments = [numbers[piece.stop * width - 1] for piece in pieces]
        last_pairs = [piece.stop * width - 1 for piece in pieces]
        kept_before, later_before, earlier_before, written_before, left_before = (
            chosen.cumsum(0) for chosen in (kept, later, earlier, written, left)
        )
        counts = [
            kept_before[-1:],
            *(before[torch.stack(last_segments)] for before in (later_before, earlier_before)),
            *(torch.stack([before[last] for last in last_pairs]) for before in (written_before, left_before)),
        ]
        # The host waits once, for all of these.
        found = torch.cat(counts).tolist()
        self.num_rows = found[0]
        bounds = [[0, *found[first : first + len(pieces)]] for first in range(1, len(found), len(pieces))]
        rows = (kept_before - 1)[rows]
        pairs = _chosen(written, bounds[2][-1])
        places = (later_before - 1)[segment_of[pairs]]
        for first, start, stop in zip(bounds[0], bounds[2], bounds[2][1:], strict=False):
            places[start:stop] -= first
        of_row = torch.cat([written_before.new_zeros(1), written_before[width - 1 :: width]])
        sources = _chosen(later, bounds[0][-1])
        self.sources = Sources(bounds[0], rows[sources], bounds[2], pairs, places, of_row)
        sinks, positions = _chosen(earlier, bounds[1][-1]), _chosen(left, bounds[3][-1])
        begins = torch.searchsorted(positions, starts[sinks])
        self.sinks = Sinks(bounds[1], rows[sinks], bounds[3], plan.order[positions], begins)


def _read_elsewhere(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whether an earlier piece, and whether a later one, has a segment with the same row; pieces ascend."""
    ordered, order = rows.sort(stable=True)  # stable: the pieces of a row ascend
    again = ordered[1:] == ordered[:-1]
    earlier, later = (torch.zeros_like(rows, dtype=torch.bool) for _ in range(2))
    earlier[order[1:]], later[order[:-1]] = again, again
    return earlier, later


def _chosen(chosen: Tensor, number: int) -> Tensor:
    """Where a mask is True, which is so many times."""
    return torch.nonzero_static(chosen, size=number).squeeze(1)
