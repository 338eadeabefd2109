"""The kernels of the values table against the dense oracle: forward, backward, log; the same bits in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_fwpkm.ops import FastWeightState, UndoLog
from megatron_fwpkm.ops.fast_weight_memory.triton.value_kernels import TILE
from megatron_fwpkm.ops.fast_weight_memory.triton.value_steps import column_blocks, read_rows
from megatron_fwpkm.ops.fast_weight_memory.write_plan import ValuePiece
from tests.ops.cases import distance
from tests.ops.triton.harness import DEVICE, poisoned, shuffled
from tests.ops.triton.values import (
    LEAVES,
    apply_triton,
    gradients_of,
    make_values,
    numbered,
    random_slots,
    run_dense,
    run_triton,
)
from tests.quick_cases import product_cases

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def one_slot(rows: int, width: int = 2) -> torch.Tensor:
    """All tokens read slot 7, all pairs of a token."""
    return torch.full((rows, width), 7)


def hot_slot(rows: int = 30, width: int = 3) -> torch.Tensor:
    """Slot 39 is read by every token, its segment is several tiles long; the others are drawn."""
    slots = random_slots(rows, width, seed=3)
    slots[:, 1] = 39
    slots[4] = 39
    return slots


def neighbours() -> torch.Tensor:
    """Twice: a tile and one pair on slot 1, so that its second tile begins just before the first tile of slot 2."""
    return torch.tensor([1] * (TILE + 1) + [2] * (TILE + 7)).repeat(2).unsqueeze(1)


def streaming() -> list[ValuePiece]:
    """A read without a write, a window that reads waiting rows again, counts of some rows only, an unwritten end."""
    return numbered(
        (0, 6, 0, 0, 0, 0, 0),
        (6, 20, 12, 17, 6, 17, 0),
        (20, 31, 22, 28, 24, 31, 11),
        (31, 35, 31, 31, 31, 31, 21),
    )


CALLS = {
    "three chunks, the last one partial": lambda: make_values(random_slots(20, 3), chunk=8),
    "one pair per row": lambda: make_values(random_slots(12, 1), chunk=4, columns=4),
    "more pairs than one pass": lambda: make_values(random_slots(9, 11), chunk=3),
    "several blocks of columns": lambda: make_values(random_slots(8, 2), chunk=4, columns=260),
    "all tokens on one slot": lambda: make_values(one_slot(3 * TILE + 5), chunk=TILE + 20, num_slots=9),
    "exactly one tile": lambda: make_values(one_slot(TILE), chunk=TILE // 2, num_slots=9),
    "one pair more than a tile": lambda: make_values(one_slot(2 * TILE + 2, 1), chunk=TILE + 1, num_slots=9),
    "a hot slot among others": lambda: make_values(hot_slot(), chunk=15),
    "two hot slots side by side": lambda: make_values(neighbours(), chunk=2 * TILE + 8, columns=4),
    "nothing is written, for the gates are closed": lambda: make_values(
        random_slots(12, 2), chunk=6, write_weights=torch.zeros(13, dtype=torch.float64)
    ),
    "a last chunk too short to write": lambda: make_values(random_slots(13, 2), chunk=6, shift=2),
    "frozen": lambda: make_values(random_slots(12, 2), chunk=6, frozen=True),
    "streaming": lambda: make_values(random_slots(35, 3), pieces=streaming()),
    "more slots than pairs": lambda: make_values(random_slots(3, 2, 500).repeat(2, 1), chunk=3, num_slots=500),
}  # fmt: skip


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Everything the chain gives, relative to the largest entry."""
    far = {name: distance(actual[name].cpu(), expected[name]) for name in actual}
    assert not {name: value for name, value in far.items() if not value <= tolerance}, far


MANY = "a hot slot among others"
# The other calls take seconds in Triton's interpreter, and vary what these hold.
QUICK = {
    "three chunks, the last one partial",
    "several blocks of columns",
    "one pair more than a tile",
    "a hot slot among others",
    "nothing is written, for the gates are closed",
    "a last chunk too short to write",
    "frozen",
    "streaming",
    "more slots than pairs",
}


@pytest.mark.parametrize("name", product_cases(CALLS, quick=QUICK.__contains__))
def test_equals_the_dense_oracle(name: str) -> None:
    call = CALLS[name]()
    expected = run_dense(call)
    with poisoned():
        actual, _ = run_triton(call.to(torch.float64))
    assert_close(actual, expected, TOLERANCE[torch.float64])


@pytest.mark.parametrize(
    "name", product_cases(["a hot slot among others", "streaming", "several blocks of columns"], quick=MANY.__eq__)
)
def test_float32_is_close_to_the_float64_oracle(name: str) -> None:
    call = CALLS[name]().to(torch.float32)
    expected = run_dense(call)
    with poisoned():
        actual, _ = run_triton(call)
    assert_close(actual, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    "name", [pytest.param(MANY, marks=pytest.mark.slow), "streaming", "more slots than pairs", "frozen"]
)
def test_repeating_in_backward_gives_the_same_bits(name: str) -> None:
    call = CALLS[name]().to(torch.float32)
    expected, _ = run_triton(call)
    with poisoned():
        actual, log = run_triton(replace(call, undo_log="recompute"))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert len(log.rows) == (0 if call.frozen else 1)
    if not call.frozen:
        assert set(log.rows[0].tolist()) == set(call.slots.flatten().tolist()), "unused rows name no other slot"
        log.undo_(FastWeightState(call.values, actual["table"]))
    assert torch.equal(actual["table"], call.values)


def test_a_rounded_log_changes_the_gradient_of_slot_weights_only() -> None:
    call = CALLS["a hot slot among others"]().to(torch.float32)
    expected, _ = run_triton(call)
    with poisoned():
        actual, log = run_triton(replace(call, undo_log="bf16"))
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor) == (name != "grad slot_weights"), name
    assert distance(actual["grad slot_weights"], expected["grad slot_weights"]) < 2.0**-8
    log.undo_(FastWeightState(call.values, actual["table"]))
    assert torch.equal(actual["table"], call.values), "an undo is exact"


@pytest.mark.parametrize("needs", [(), ("slot_weights",), ("write_weights", "targets"), ("values",)])
@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_that_nobody_wants_change_nothing(needs: tuple[str, ...], frozen: bool) -> None:
    call = make_values(random_slots(14, 2), chunk=5, frozen=frozen)
    expected = run_dense(call)
    with poisoned():
        actual, _ = run_triton(call.to(torch.float64), needs)
    assert set(actual) == {"reads", "squares", "table", *(f"grad {name}" for name in needs)}
    assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize(
    ("needs", "name"),
    product_cases([(), LEAVES], [MANY, "streaming"], quick=lambda needs, name: bool(needs) == (name == "streaming")),
)
def test_the_log_takes_every_write_back(name: str, needs: tuple[str, ...]) -> None:
    call = CALLS[name]().to(torch.float64)
    with poisoned():
        found, log = run_triton(call, needs)
    assert len(log.rows) == sum(piece.write_stop > piece.start for piece in call.pieces)
    for number in range(len(log.rows)):
        rows, old_values = log.write(number)
        assert old_values.isfinite().all()
        places = {slot: place for place, slot in reversed(list(enumerate(rows.tolist())))}
        assert torch.equal(old_values, old_values[[places[slot] for slot in rows.tolist()]]), "one value per slot"
    state = FastWeightState(call.values.new_zeros(0), found["table"])
    assert not torch.equal(state.values, call.values)
    log.undo_(state)
    assert torch.equal(state.values, call.values)


@pytest.mark.parametrize(("name", "rows"), [(MANY, 2 * 40), pytest.param("streaming", 35 * 3, marks=pytest.mark.slow)])
def test_the_log_has_a_row_for_every_pair_or_for_every_slot(name: str, rows: int) -> None:
    """Whichever are fewer over all pieces."""
    call = CALLS[name]().to(torch.float32)
    found, log = run_triton(call)
    assert found["reads"].isfinite().all()
    storages = {old.untyped_storage().data_ptr(): old.untyped_storage().nbytes() for old in log.old_values}
    assert list(storages.values()) == [rows * 12 * 4]


def test_reads_alone_are_those_of_the_chain() -> None:
    call = make_values(random_slots(11, 3), chunk=11).to(torch.float64)
    with poisoned():
        reads = read_rows(call.values, call.slots, call.slot_weights)
    assert distance(reads, (call.slot_weights.unsqueeze(-1) * call.values[call.slots]).sum(1)) <= 1e-14


def test_columns_can_be_apart() -> None:
    """As on tensor-parallel ranks: each has its columns, and gradients of what all share are sums over them."""
    call = make_values(random_slots(14, 2), chunk=7).to(torch.float64)
    weigh = torch.cos(torch.arange(14 * 12, dtype=torch.float64, device=DEVICE)).view(14, 12)
    shared: dict[str, list[torch.Tensor]] = {"slot_weights": [], "write_weights": [], "squares": []}
    whole, parts = [], []
    for columns in (slice(0, 12), slice(0, 4), slice(4, 12)):
        part = replace(call, values=call.values[:, columns].contiguous(), targets=call.targets[:, columns].contiguous())
        leaves = {name: getattr(part, name).clone().requires_grad_() for name in LEAVES}
        table = part.values.clone()
        reads, squares = apply_triton(part, leaves, table, UndoLog())
        found = torch.autograd.grad((reads * weigh[:, columns]).sum(), list(leaves.values()))
        (whole if columns.stop - columns.start == 12 else parts).append((reads, table, found[0], found[3]))
        for name, tensor in zip(shared, (found[1], found[2], squares), strict=True):
            shared[name].append(tensor)
    for number, expected in enumerate(whole[0]):
        assert distance(torch.cat([part[number] for part in parts], 1), expected) <= 1e-12
    for name, (expected, one, other) in shared.items():
        assert distance(one + other, expected) <= 1e-12, name


@pytest.mark.slow
def test_rows_past_the_range_of_32_bits() -> None:
    """1024 * 1024 slots, of which only the last few exist: the rest of these 8 GiB is never touched."""
    num_slots, columns = 1024 * 1024, 2056
    first = num_slots - 60
    assert first * columns > 2**31
    small = make_values(random_slots(4, 1, 60), chunk=2, num_slots=60, columns=columns).to(torch.float32)
    expected, _ = run_triton(small, LEAVES[1:])
    table = torch.empty(num_slots, columns, device=DEVICE)
    table[first:] = small.values
    leaves = {name: getattr(small, name).clone().requires_grad_() for name in LEAVES[1:]}
    log = UndoLog()
    large = replace(small, slots=small.slots + first)
    reads, squares = apply_triton(large, {"values": table, **leaves}, table, log)
    actual = {"reads": reads, "squares": squares, "table": table[first:], **gradients_of(reads, leaves)}
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    log.undo_(FastWeightState(table[:0], table))
    assert torch.equal(table[first:], small.values)


@pytest.mark.parametrize(
    ("columns", "size", "number"),
    [(4, 4, 1), (12, 16, 1), (128, 128, 1), (256, 256, 1), (384, 128, 3), (512, 512, 1), (768, 256, 3), (1024, 512, 2)],
)
def test_blocks_waste_no_columns(columns: int, size: int, number: int) -> None:
    blocks = column_blocks(columns)
    assert (blocks.size, blocks.number) == (size, number)
    assert blocks.warps == max(1, size // 128)
    assert column_blocks(columns, 2).warps == max(1, size // 256)


def test_the_order_of_programs_changes_no_bit() -> None:
    call = make_values(hot_slot(20), chunk=14, columns=132).to(torch.float32)
    expected, _ = run_triton(call)
    with shuffled(1):
        actual, _ = run_triton(call)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_repeated_runs_give_the_same_bits() -> None:
    call = make_values(hot_slot(20), chunk=14).to(torch.float32)
    expected, _ = run_triton(call)
    for _ in range(1 if DEVICE == "cpu" else 100):
        actual, _ = run_triton(call)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
