"""The plan of the writes: what it says, and that no number of it is needed on the host."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from megatron_fwpkm.ops.fast_weight_memory.sparse.value_steps import find_segments
from megatron_fwpkm.ops.fast_weight_memory.triton import plans
from megatron_fwpkm.ops.fast_weight_memory.triton.plans import plan_adjoint, plan_writes
from megatron_fwpkm.ops.fast_weight_memory.write_plan import (
    _scanned_bounds,
    _searched_bounds,
    make_adjoint_plan,
    make_write_plan,
)
from tests.ops.triton.harness import poisoned, shuffled
from tests.ops.triton.values import DEVICE, drop_pieces, numbered, random_slots

PIECES = numbered((0, 9, 0, 7, 0, 9, 0), (9, 14, 9, 13, 11, 14, 9), (14, 17, 14, 14, 14, 14, 14))


@pytest.mark.parametrize("make", [make_write_plan, plan_writes])
@pytest.mark.parametrize(("num_slots", "width"), [(5, 3), (1, 1), (300, 2), (2**30, 2)])
def test_pairs_are_sorted_by_piece_and_slot(num_slots: int, width: int, make: Any) -> None:
    """Of the last shape keys have more than 32 bits."""
    slots = random_slots(17, width, num_slots).to(DEVICE)
    with poisoned():
        plan = make(slots, PIECES, num_slots)
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


@pytest.mark.parametrize("make", [make_adjoint_plan, partial(plan_adjoint, wants_table=True)])
@pytest.mark.parametrize("wants_table", [False, True])
@pytest.mark.parametrize("num_slots", [20, 90])
def test_adjoint_rows_are_the_distinct_slots_of_a_call(num_slots: int, wants_table: bool, make: Any) -> None:
    """With fewer slots than pairs, and with more."""
    slots = random_slots(17, 3, num_slots).to(DEVICE)
    plan = make_write_plan(slots, PIECES, num_slots)
    with poisoned():
        adjoint = make(plan, num_slots)
    sources, sinks = adjoint.links(plan, wants_table)
    in_use = adjoint.slots[adjoint.slots < num_slots]
    assert torch.equal(in_use.sort().values, slots.unique())
    assert (adjoint.slots <= num_slots).all() and adjoint.slots.shape == (min(51, num_slots),)
    if make is make_adjoint_plan:
        assert torch.equal(adjoint.slots.sort().values, adjoint.slots)
        counted = make_adjoint_plan(plan, num_slots, counted=True)
        assert torch.equal(counted.slots, in_use) and torch.equal(counted.rows, adjoint.rows)
    touched = [set(slots[piece.start : piece.stop].flatten().tolist()) for piece in PIECES]
    for pair, slot in enumerate(slots.flatten().tolist()):
        number = next(n for n, piece in enumerate(PIECES) if pair // 3 < piece.stop)
        row = adjoint.rows[pair].item()
        later, earlier = (any(slot in other for other in some) for some in (touched[number + 1 :], touched[:number]))
        assert adjoint.slots[row].item() == slot
        assert sources[pair].item() == (row if later else -1)
        assert sinks[pair].item() == (row if earlier or wants_table else -1)


def test_the_order_of_programs_changes_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_BLOCK", 8)
    slots = random_slots(17, 3, 20).to(DEVICE)
    expected = plan_writes(slots, PIECES, 20)
    with shuffled(1), poisoned():
        plan = plan_writes(slots, PIECES, 20)
        adjoint = plan_adjoint(plan, 20, True)
    assert all(torch.equal(a, b) for a, b in zip(plan, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(adjoint, plan_adjoint(plan, 20, True), strict=True))


def test_bounds_are_found_by_search_as_by_scan() -> None:
    ordered = random_slots(200, 1, 30).flatten().sort().values
    is_head = torch.cat([torch.ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    for searched, scanned in zip(_searched_bounds(ordered), _scanned_bounds(is_head), strict=True):
        assert torch.equal(searched, scanned)


def test_nothing_waits_for_a_number() -> None:
    """FakeTensorMode raises for every shape or branch that depends on data."""
    pieces = drop_pieces(8 * 4096, 8 * 512, 8)
    with FakeTensorMode():
        slots = torch.empty(8 * 4096, 8, dtype=torch.int64)
        plan = make_write_plan(slots, pieces, 512 * 512)
        with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
            find_segments(plan, pieces, torch.ones(8))
        adjoint = make_adjoint_plan(plan, 512 * 512)
        sources, _ = adjoint.links(plan, False)
    assert plan.order.shape == plan.counts.shape == sources.shape == (8 * 4096 * 8,)
    assert adjoint.slots.shape == (min(8 * 4096 * 8, 512 * 512),)
