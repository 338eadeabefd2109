"""The plan of the Triton kernels: what it says, and that no number of it is needed on the host."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from megatron_fwpkm.ops.fast_weight_memory.triton_write_plan import make_adjoint_plan, make_triton_write_plan
from megatron_fwpkm.ops.fast_weight_memory.write_plan import ValuePiece, make_write_plan
from tests.ops.triton.values import DEVICE, drop_pieces, random_slots

PIECES = [ValuePiece(0, 9, 0, 7, 0, 9, 0), ValuePiece(9, 14, 9, 13, 11, 14, 9), ValuePiece(14, 17, 14, 14, 14, 14, 14)]


@pytest.mark.parametrize(("num_slots", "width"), [(5, 3), (1, 1), (300, 2)])
def test_says_the_same_as_the_plan_of_sparse(num_slots: int, width: int) -> None:
    slots = random_slots(17, width, num_slots).to(DEVICE)
    expected, plan = make_write_plan(slots, PIECES, num_slots), make_triton_write_plan(slots, PIECES, num_slots)
    assert torch.equal(plan.order, expected.order)
    positions = plan.is_head.nonzero().squeeze(1)
    assert torch.equal(positions, expected.starts)
    assert torch.equal(plan.slots[positions], expected.slots)
    assert torch.equal(plan.counts[positions], expected.counts)
    assert torch.equal(plan.places, expected.starts[expected.segments])
    assert torch.equal(plan.slots, slots.flatten()[plan.order])
    ends = torch.cat([positions[1:], positions.new_tensor([slots.numel()])])
    assert torch.equal(plan.lengths[positions], ends - positions)
    assert torch.equal(plan.heads, positions.repeat_interleave(ends - positions))


@pytest.mark.parametrize("wants_table", [False, True])
def test_adjoint_rows_are_the_distinct_slots_of_a_call(wants_table: bool) -> None:
    slots = random_slots(17, 3, 20).to(DEVICE)
    plan = make_triton_write_plan(slots, PIECES, 20)
    adjoint = make_adjoint_plan(plan, PIECES, 20, wants_table)
    distinct = slots.unique()
    assert torch.equal(adjoint.slots[: distinct.numel()], distinct)
    assert (adjoint.slots[distinct.numel() :] == 20).all() and adjoint.slots.shape == (20,)
    touched = [set(slots[piece.start : piece.stop].flatten().tolist()) for piece in PIECES]
    for pair, slot in enumerate(slots.flatten().tolist()):
        number = next(n for n, piece in enumerate(PIECES) if pair // 3 < piece.stop)
        row = distinct.tolist().index(slot)
        later, earlier = (any(slot in other for other in some) for some in (touched[number + 1 :], touched[:number]))
        assert adjoint.rows[pair].item() == row
        assert adjoint.sources[pair].item() == (row if later else -1)
        assert adjoint.sinks[pair].item() == (row if earlier or wants_table else -1)


def test_nothing_waits_for_a_number() -> None:
    """FakeTensorMode raises for every shape or branch that depends on data."""
    pieces = drop_pieces(8 * 4096, 8 * 512, 8)
    with FakeTensorMode():
        slots = torch.empty(8 * 4096, 8, dtype=torch.int64)
        with pytest.raises(DynamicOutputShapeException, match="repeat_interleave"):
            make_write_plan(slots, pieces, 512 * 512)
        plan = make_triton_write_plan(slots, pieces, 512 * 512)
        adjoint = make_adjoint_plan(plan, pieces, 512 * 512, False)
    assert plan.order.shape == plan.counts.shape == adjoint.sources.shape == (8 * 4096 * 8,)
    assert adjoint.slots.shape == (min(8 * 4096 * 8, 512 * 512),)
