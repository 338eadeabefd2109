"""Through which slots the gradient of the table goes from piece to piece, counted by hand."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.ops.fast_weight_memory.sparse.adjoint_links import AdjointLinks
from megatron_fwpkm.ops.fast_weight_memory.write_plan import ValuePiece, make_adjoint_plan, make_write_plan

SLOTS = [[3, 1], [1, 2], [7, 3], [2, 3], [3, 4], [5, 2], [7, 7]]
"""Two slots for each of seven rows; pieces of three, two and two rows, of which the last is never written."""
STOPS = [3, 5, 7]


def pieces() -> list[ValuePiece]:
    starts = [0, *STOPS[:-1]]
    return [
        ValuePiece(a, b, a, b - 1, a, b, a, number, a, a - number, number)
        for number, (a, b) in enumerate(zip(starts, STOPS, strict=True))
    ]


@pytest.mark.parametrize("wants_table", [False, True])
def test_only_slots_that_several_pieces_read(wants_table: bool) -> None:
    read = [{slot for row in SLOTS[piece.start : piece.stop] for slot in row} for piece in pieces()]
    plan = make_write_plan(torch.tensor(SLOTS), pieces(), 9)
    adjoint_plan = make_adjoint_plan(plan, 9)
    adjoint_plan = adjoint_plan._replace(slots=adjoint_plan.slots[adjoint_plan.slots < 9])
    starts = plan.is_head.nonzero().squeeze(1)
    links = AdjointLinks(plan, adjoint_plan, pieces(), starts, wants_table)
    shared = sorted(slot for slot in set().union(*read) if wants_table or sum(slot in slots for slots in read) > 1)
    assert links.num_rows == len(shared)
    for piece, slots in zip(pieces(), read, strict=True):
        earlier, later = set().union(*read[: piece.number]), set().union(*read[piece.number + 1 :])
        flat = [(2 * row + j, slot) for row in range(piece.start, piece.stop) for j, slot in enumerate(SLOTS[row])]
        sources, sinks = links.sources, links.sinks
        part = slice(*sources.bounds[piece.number : piece.number + 2])
        assert [shared[row] for row in sources.rows[part]] == sorted(slots & later)
        pairs = slice(*sources.pair_bounds[piece.number : piece.number + 2])
        expected = [(pair, slot) for pair, slot in flat if slot in later and pair < 2 * piece.write_stop]
        assert sources.pairs[pairs].tolist() == [pair for pair, _ in expected]
        assert [sorted(slots & later)[place] for place in sources.places[pairs]] == [slot for _, slot in expected]
        for row in range(piece.start, piece.stop):
            of_row = sources.pairs[sources.starts[row] : sources.starts[row + 1]].tolist()
            assert of_row == [pair for pair, _ in expected if pair // 2 == row]
        part = slice(*sinks.bounds[piece.number : piece.number + 2])
        wanted = sorted(slots if wants_table else slots & earlier)
        assert [shared[row] for row in sinks.rows[part]] == wanted
        stop = sinks.pair_bounds[piece.number + 1]
        edges = [*sinks.starts[part].tolist(), stop]
        for slot, first, last in zip(wanted, edges, edges[1:], strict=False):
            assert sinks.pairs[first:last].tolist() == [pair for pair, its in flat if its == slot]
