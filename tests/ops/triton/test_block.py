"""The block around a memory in kernels: its formulas, and the same bits in any order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.ops.memory_block.block_types import NormWeights
from megatron_fwpkm.ops.memory_block.reference import reference_mixture, reference_standard
from megatron_fwpkm.ops.memory_block.triton import block_functions
from megatron_fwpkm.ops.memory_block.triton.block_functions import TRITON_STEPS
from tests.ops.block import EPS, WEIGHTS, AllColumns, fixed, make_block, run_reference, run_steps
from tests.ops.cases import distance
from tests.ops.host_waits import host_waits
from tests.ops.shards import ThreadShards, run_ranks
from tests.ops.triton.harness import DEVICE, one_at_a_time, poisoned, shuffled

TOLERANCES = {torch.float64: 3e-14, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Two roundings of the dtype; Triton's interpreter cuts off digits where a GPU rounds to bfloat16."""
SHAPES: dict[str, dict[str, Any]] = {
    "several tokens a program": {},
    "one token": {"tokens": (1,)},
    "odd columns": {"tokens": (5,), "hidden": 33, "columns": 7},
    "no gate": {"gated": False},
    "whole blocks": {"tokens": (3,), "hidden": 64, "columns": 32},
}


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unwritten memory is NaN, and the sums over tokens are those of 3 programs."""
    monkeypatch.setattr(block_functions, "PROGRAMS", 3)
    with poisoned():
        yield


def on_device(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same on the device under test."""
    return {name: leaf.to(DEVICE) for name, leaf in leaves.items()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Outputs and gradients, relative to the largest entry."""
    assert actual.keys() == expected.keys()
    far = {name: distance(actual[name].cpu(), tensor) for name, tensor in expected.items()}
    assert not {name: value for name, value in far.items() if not value <= tolerance}, far


@pytest.mark.parametrize("name", SHAPES)
def test_float64_is_that_of_the_formulas(name: str) -> None:
    leaves = make_block(**SHAPES[name])
    assert_close(run_steps(TRITON_STEPS, on_device(leaves)), run_reference(leaves), TOLERANCES[torch.float64])


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, marks=pytest.mark.slow),
        pytest.param(torch.float16, marks=pytest.mark.slow),
        torch.bfloat16,
    ],
    ids=str,
)
def test_other_dtypes_are_some_roundings_away(dtype: torch.dtype) -> None:
    leaves = make_block(dtype=dtype)
    actual = run_steps(TRITON_STEPS, on_device(leaves))
    expected = run_reference(leaves)
    assert_close(actual, expected, TOLERANCES[dtype])
    for name in ("queries", "values", "out", "grad x", "grad values", "grad query", "grad gate_row", "grad gate_bias"):
        assert actual[name].dtype == dtype, name
    assert actual["gates"].dtype == actual["targets"].dtype == actual["grad reads"].dtype == torch.float32
    for name in ("gates", "targets", "mixed"):  # not rounded to the dtype on their way
        assert distance(actual[name].cpu(), expected[name]) <= TOLERANCES[torch.float32], name


def test_the_order_of_programs_changes_no_bit() -> None:
    leaves = make_block(dtype=torch.float32)
    expected = run_steps(TRITON_STEPS, on_device(leaves))
    with shuffled(4):
        actual = run_steps(TRITON_STEPS, on_device(leaves))
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


class _Columns:
    """What `ColumnSharding` is to the kernels, over threads."""

    def __init__(self, shards: ThreadShards, num_columns: int) -> None:
        self.size, self.sum_shards, self.num_columns = shards.size, shards.sum_shards, num_columns


def _cut(name: str, x: Tensor, shards: ThreadShards) -> Tensor:
    """A process's columns; gates are whole."""
    return x if name == "gates" else x.chunk(shards.size, -1)[shards.rank].contiguous()


def _weigh(outputs: dict[str, Tensor], leaves: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs, and the gradients of their weighted sum."""
    loss = sum((output * weights[name]).sum() for name, output in outputs.items())
    gradients = torch.autograd.grad(loss, list(leaves.values()))  # type: ignore[arg-type]
    return {**outputs, **{f"grad {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}}


@pytest.mark.parametrize("gated", [True, False])
def test_columns_can_be_apart(gated: bool) -> None:
    """Three processes with 4 of 12 columns each; the gradient of the gates is the sum of their parts."""
    made = make_block(tokens=(4,))
    leaves = {name: made[name].requires_grad_() for name in ("values", "reads", "weight")}
    if gated:
        leaves["gates"] = torch.rand(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        leaves["gates"].requires_grad_()
    standard = reference_standard(leaves["values"])
    out = reference_mixture(leaves["reads"], standard, leaves.get("gates"), leaves["weight"], EPS)
    outputs = {"targets": standard, "mixed": standard, "out": out}
    weights = {name: fixed(name, output) for name, output in outputs.items()}
    expected = _weigh(outputs, leaves, weights)

    def run(shards: ThreadShards) -> dict[str, Tensor]:
        columns = _Columns(shards, 12)
        mine = {n: _cut(n, leaf.detach(), shards).to(DEVICE).requires_grad_() for n, leaf in leaves.items()}
        targets, mixed = TRITON_STEPS.standardize_values(mine["values"], torch.float64, columns)
        gates = mine.get("gates")
        out = TRITON_STEPS.mix_reads(mine["reads"], mixed, gates, mine["weight"], EPS, torch.float64, columns)
        outputs = {"targets": targets, "mixed": mixed, "out": out}
        return _weigh(outputs, mine, {name: _cut(name, weight, shards).to(DEVICE) for name, weight in weights.items()})

    with one_at_a_time():
        parts = run_ranks(3, run)
    gates = {"grad gates": sum(part.pop("grad gates") for part in parts)} if gated else {}
    joined = {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}
    assert_close({**joined, **gates}, expected, 1e-13)


def test_gradients_that_nobody_needs() -> None:
    """Of two uses of the z-scores only one is differentiated, then none; and the hidden state goes on alone."""
    leaves = {name: leaf.to(DEVICE).requires_grad_() for name, leaf in make_block(tokens=(4,)).items()}
    values = leaves["values"]
    weight = fixed("one use", values)
    (expected,) = torch.autograd.grad((reference_standard(values) * weight).sum(), values)
    for use in (0, 1):
        made = TRITON_STEPS.standardize_values(values, torch.float64, AllColumns(12))[use]
        assert distance(torch.autograd.grad((made * weight).sum(), values)[0], expected) <= 1e-13
    inputs = TRITON_STEPS.normalize_hidden(leaves["x"], NormWeights(*map(leaves.get, WEIGHTS)), EPS, torch.float64)
    gradients = torch.autograd.grad(inputs.residual.sum(), [leaves[name] for name in ("x", *WEIGHTS)])
    assert torch.equal(gradients[0], torch.ones_like(gradients[0])) and not any(g.any() for g in gradients[1:])


def test_values_that_are_all_alike() -> None:
    """Their deviation is 0, and has no slope there."""
    values = torch.full((2, 12), 0.75, dtype=torch.float64, device=DEVICE, requires_grad=True)
    targets, _ = TRITON_STEPS.standardize_values(values, torch.float64, AllColumns(12))
    assert not targets.any()
    weight = fixed("alike", values)
    (gradient,) = torch.autograd.grad((targets * weight).sum(), values)
    assert distance(gradient, (weight - weight.mean(-1, keepdim=True)) * 1e6) <= 1e-13


def test_the_host_never_waits() -> None:
    leaves = on_device(make_block(tokens=(4,), dtype=torch.float32))
    with host_waits() as found:
        run_steps(TRITON_STEPS, leaves)
    assert not found
