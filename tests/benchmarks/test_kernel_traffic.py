"""The formulas for the bytes of kernels: every kernel has one, and it says what the kernel touches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.counted_calls import Subject, op_call
from benchmarks.counting import counting
from benchmarks.kernel_traffic import (
    FORMULAS,
    ROW_KERNELS,
    Launch,
    Slots,
    evenly_read,
    evenly_spread,
    moved_bytes,
    pairs_of_rows,
)
from benchmarks.shapes import PAPER, Shape
from benchmarks.traffic import forward_stages
from tests.benchmarks.test_stages import kernels_of_the_ops
from tests.benchmarks.touched_addresses import touched_addresses

pytest.importorskip("triton")


def test_every_kernel_has_a_formula():
    assert kernels_of_the_ops() - set(FORMULAS) == set(), "add them to FORMULAS in benchmarks/kernel_traffic.py"


def test_what_has_no_formula_is_named():
    with pytest.raises(RuntimeError, match="new_kernel has no formula .* add one to FORMULAS"):
        moved_bytes(Launch("new_kernel", (1,), {}))
    new = {"X": torch.empty(3), "tokens": 1, "K": 1}
    with pytest.raises(RuntimeError, match=r"the formula of strength_kernel .* leaves out \['X'\]"):
        moved_bytes(Launch("strength_kernel", (1, 1), new))


def test_slots_that_are_named_by_chance():
    first, last = (evenly_spread(1000, 1000, piece, 3) for piece in (0, 2))
    assert first.distinct == pytest.approx(1000 * (1 - 0.999**1000)) and first.before == 0 == last.again
    assert first.again == last.before == pytest.approx(first.distinct * (1 - 0.999**2000))


def test_reads_and_writes_agree_with_the_stages_of_a_call():
    """`traffic.py`, which the stages' shares of the bandwidth are computed from, counts rows and little else."""
    from benchmarks.counted_calls import count_op

    shape = replace(PAPER, batch=8)
    launches = count_op(Subject("op", "triton"), shape)["forward"].arguments
    found = Counter[str]()
    for launch in launches:
        found[launch[0]] += round(moved_bytes(evenly_read(launch, shape.num_subkeys**2, 8)))
    distinct = evenly_spread(shape.batch * shape.chunk_size * shape.topk, shape.num_subkeys**2, 0, 8).distinct
    expected = forward_stages(shape, [round(distinct)] * 8, training=True)
    assert found["read_rows_kernel"] == pytest.approx(expected["read"], rel=0.02)
    assert found["write_rows_kernel"] == pytest.approx(expected["write"], rel=0.02)


SMALL = Shape(2, 48, 2, 4, 16, 32, 32, 16)


@pytest.fixture(scope="module")
def launches() -> list[tuple[Launch, int]]:
    """Every launch of a small call, forward and backward, and the bytes that it touched."""
    torch.manual_seed(0)
    call, inputs = op_call(Subject("op", "triton"), SMALL, "cpu")
    found = []
    with counting(triton=True, run=True) as counted, touched_addresses(counted) as touched:
        output = call()
        torch.autograd.grad(output, inputs, torch.ones_like(output))
    for (name, grid, arguments), moved in zip(counted.arguments, touched.bytes(), strict=True):
        launch = Launch(name, grid, arguments)
        found.append((replace(launch, slots=slots_of(launch) if name in ROW_KERNELS else None), moved))
    return found


def slots_of(launch: Launch) -> Slots:
    """What the plan says of a piece, instead of what is to be expected."""
    width = launch["J"]
    pairs = slice(launch["first_row"] * width, launch["first_row"] * width + pairs_of_rows(launch))

    def part(name: str) -> Any:
        return launch[name].flatten()[pairs]

    names = {"read_rows_kernel": "PAIR_SLOTS", "write_rows_kernel": "SLOTS", "backward_rows_kernel": "PLACES"}
    if launch.name in names:
        again = part("SOURCES") if launch.name == "backward_rows_kernel" else torch.tensor([-1])
        written = again[: launch.arguments.get("written", 0) * width]
        return Slots(len(part(names[launch.name]).unique()), len(written[written >= 0].unique()), 0, 0)
    sinks, sources = part("SINKS"), part("SOURCES")
    both = sinks[(sinks >= 0) & (sources >= 0)]
    return Slots(len(sinks[sinks >= 0].unique()), len(both.unique()), len(sinks[sinks >= 0].unique()), 0)


@pytest.mark.slow
def test_formulas_say_what_kernels_touch(launches: list[tuple[Launch, int]]) -> None:
    counted, computed = Counter[str](), Counter[str]()
    for launch, moved in launches:
        counted[launch.name] += moved
        computed[launch.name] += round(moved_bytes(launch))
    shares = {name: computed[name] / counted[name] for name in counted}
    wrong = {name: round(share, 2) for name, share in shares.items() if not 0.85 < share < 1.15}
    assert len(counted) > 10 and not wrong
