"""The segments of a write plan without the room for those that do not exist: the host waits once, to count them.

Shapes: S segments (a segment is one slot touched by one piece), P pairs, counted row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..write_plan import ValuePiece, WritePlan


class Segments(NamedTuple):
    """The segments of all pieces.

    Attributes:
        bounds: segments of piece p are [bounds[p], bounds[p + 1]).
        starts: [S] first sorted pair of every segment.
        places: [P] segment of every pair, counted from the piece's first.
        steps: [P] step size of every pair, alpha of DESIGN 2.5: scale of its piece / readers of its slot.
    """

    bounds: list[int]
    starts: Tensor
    places: Tensor
    steps: Tensor


def find_segments(plan: WritePlan, pieces: list[ValuePiece], scales: Tensor) -> Segments:
    """Number the segments of a plan; the one place where the host waits for a device.

    Args:
        plan: of the same pieces.
        pieces: consecutive.
        scales: [pieces], step size of every write before the division by a slot's readers.
    """
    width = plan.pair_slots.shape[1]
    numbers = plan.is_head.cumsum(0)
    bounds = [0, *torch.stack([numbers[piece.stop * width - 1] for piece in pieces]).tolist()]
    numbers -= 1
    # All pairs of a segment name the same first one.
    starts = plan.heads.new_empty(bounds[-1]).scatter_(0, numbers, plan.heads)
    places = torch.empty_like(numbers).scatter_(0, plan.order, numbers)
    counts, steps = plan.counts[starts], scales.new_empty(places.shape)
    for number, piece in enumerate(pieces):
        first, pairs = bounds[number], slice(piece.start * width, piece.stop * width)
        places[pairs] -= first
        step = scales[number] / counts[first : bounds[number + 1]]
        torch.index_select(step, 0, places[pairs], out=steps[pairs])
    return Segments(bounds, starts, places, steps)
