"""The plan of the writes: what it says, and that no number of it is needed on the host."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from megatron_fwpkm.ops.fast_weight_memory.sparse.value_steps import find_segments
from megatron_fwpkm.ops.fast_weight_memory.write_plan import make_adjoint_plan, make_write_plan
from tests.ops.triton.values import DEVICE, drop_pieces, numbered, random_slots

PIECES = numbered((0, 9, 0, 7, 0, 9, 0), (9, 14, 9, 13, 11, 14, 9), (14, 17, 14, 14, 14, 14, 14))


@pytest.mark.parametrize(("num_slots", "width"), [(5, 3), (1, 1), (300, 2)])
def test_pairs_are_sorted_by_piece_and_slot(num_slots: int, width: int) -> None:
    slots = random_slots(17, width, num_slots).to(DEVICE)
    plan = make_write_plan(slots, PIECES, num_slots)
    segments = find_segments(plan, PIECES, torch.ones(len(PIECES), device=DEVICE))
    expected: list[list[int]] = []
    position = 0
    for number, piece in enumerate(PIECES):
        assert segments.bounds[number] == len(expected)
        for slot in sorted(set(slots[piece.start : piece.stop].flatten().tolist())):
            pairs = [row * width + j for row in range(piece.start, piece.stop) for j in range(width)]
            pairs = [pair for pair in pairs if slots.flatten()[pair] == slot]
            here = slice(position, position + len(pairs))
            assert plan.order[here].tolist() == pairs, "rows ascend"
            assert set(plan.slots[here].tolist()) == {slot} and set(plan.heads[here].tolist()) == {position}
            assert set(plan.lengths[here].tolist()) == {len(pairs)}
            counted = sum(piece.count_start <= pair // width < piece.count_stop for pair in pairs)
            assert set(plan.counts[here].tolist()) == {max(1, counted)}
            assert plan.is_head[here].tolist() == [True] + [False] * (len(pairs) - 1)
            assert set(plan.places[pairs].tolist()) == {position}
            assert segments.starts[len(expected)] == position
            assert set(segments.places[pairs].tolist()) == {len(expected) - segments.bounds[number]}
            expected.append(pairs)
            position += len(pairs)
    assert segments.bounds[-1] == len(expected) == len(segments.starts)


@pytest.mark.parametrize("wants_table", [False, True])
def test_adjoint_rows_are_the_distinct_slots_of_a_call(wants_table: bool) -> None:
    slots = random_slots(17, 3, 20).to(DEVICE)
    plan = make_write_plan(slots, PIECES, 20)
    adjoint = make_adjoint_plan(plan, 20)
    sources, sinks = adjoint.links(plan, PIECES, wants_table)
    distinct = slots.unique()
    assert torch.equal(adjoint.slots[: distinct.numel()], distinct)
    assert (adjoint.slots[distinct.numel() :] == 20).all() and adjoint.slots.shape == (20,)
    touched = [set(slots[piece.start : piece.stop].flatten().tolist()) for piece in PIECES]
    for pair, slot in enumerate(slots.flatten().tolist()):
        number = next(n for n, piece in enumerate(PIECES) if pair // 3 < piece.stop)
        row = distinct.tolist().index(slot)
        later, earlier = (any(slot in other for other in some) for some in (touched[number + 1 :], touched[:number]))
        assert adjoint.rows[pair].item() == row
        assert sources[pair].item() == (row if later else -1)
        assert sinks[pair].item() == (row if earlier or wants_table else -1)


def test_nothing_waits_for_a_number() -> None:
    """FakeTensorMode raises for every shape or branch that depends on data."""
    pieces = drop_pieces(8 * 4096, 8 * 512, 8)
    with FakeTensorMode():
        slots = torch.empty(8 * 4096, 8, dtype=torch.int64)
        plan = make_write_plan(slots, pieces, 512 * 512)
        with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
            find_segments(plan, pieces, torch.ones(8))
        adjoint = make_adjoint_plan(plan, 512 * 512)
        sources, _ = adjoint.links(plan, pieces, False)
    assert plan.order.shape == plan.counts.shape == sources.shape == (8 * 4096 * 8,)
    assert adjoint.slots.shape == (min(8 * 4096 * 8, 512 * 512),)
