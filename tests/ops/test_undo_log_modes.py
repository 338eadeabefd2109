"""What is kept until backward: everything, everything rounded, or what it takes to repeat the reads and writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_fwpkm.ops import FastWeightState, fast_weight_memory_, make_rounding
from tests.ops.cases import Case, distance, gradients, make_case
from tests.quick_cases import product_cases

IMPLEMENTATIONS = ["sparse", "triton"]


def case_of(table: torch.dtype = torch.float32, **options: Any) -> Case:
    """Three chunks with masks; slots meet again and again."""
    sizes = {"batch": 1, "tokens": 11, "chunk_size": 4, "heads": 1, "topk": 2, "num_subkeys": 3, "value_dim": 8}
    case = make_case(4, **{**sizes, "masked": True, "dtype": torch.float32, **options})
    rounding = make_rounding(9) if table == torch.bfloat16 else None
    return replace(case, state=replace(case.state, values=case.state.values.to(table), rounding=rounding))


@pytest.mark.parametrize(
    ("boundary", "table", "implementation"),
    product_cases(
        ["drop", "carry"],
        [torch.float32, torch.bfloat16],
        IMPLEMENTATIONS,
        quick=lambda boundary, table, name: name != "triton" or (boundary, table) == ("drop", torch.bfloat16),
    ),
)
def test_repeating_gives_the_same_bits(implementation: str, table: torch.dtype, boundary: str) -> None:
    case = case_of(table, implementation=implementation, boundary=boundary, num_pending=2 * (boundary == "carry"))
    expected, wanted = gradients(case)
    actual, found = gradients(case, undo_log="recompute")
    assert torch.equal(actual.state.values, expected.state.values)
    assert torch.equal(actual.retrieved, expected.retrieved)
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_rounded_log_rounds_gradients_only(implementation: str) -> None:
    case = case_of(implementation=implementation)
    expected, wanted = gradients(case)
    actual, found = gradients(case, undo_log="bf16")
    assert torch.equal(actual.state.values, expected.state.values)
    assert torch.equal(actual.retrieved, expected.retrieved)
    for name, gradient in wanted.items():
        through_slot_weights = name in ("queries", "sub_keys")
        assert torch.equal(found[name], gradient) != through_slot_weights, name
        assert distance(found[name], gradient) < 2e-2, name


def run_in_place(case: Case, state: FastWeightState, undo_log: str) -> Any:
    """One call on the tables of `state`, and its queries' gradient after the state has moved on."""
    queries = case.queries.clone().requires_grad_()
    first = fast_weight_memory_(queries, case.targets, case.gates, state, **case.options, undo_log=undo_log)
    second = fast_weight_memory_(case.queries, case.targets, case.gates, first.state, **case.options)
    assert second.undo_log is not None and first.undo_log is not None
    written = state.values.clone()
    (gradient,) = torch.autograd.grad(first.retrieved.square().sum(), queries)
    assert torch.equal(state.values, written), "repeating leaves the table alone"
    second.undo_log.undo_(state)
    first.undo_log.undo_(state)
    return gradient


@pytest.mark.parametrize(
    ("table", "undo_log", "implementation"),
    product_cases(
        [torch.float32, torch.bfloat16],
        ["bf16", "recompute"],
        IMPLEMENTATIONS,
        quick=lambda table, undo_log, name: name != "triton" or (table, undo_log) == (torch.float32, "recompute"),
    ),
)
def test_undo_is_exact_and_backward_does_not_need_the_table(
    implementation: str, undo_log: str, table: torch.dtype
) -> None:
    case = case_of(table, tokens=8, implementation=implementation)

    def fresh() -> FastWeightState:
        rounding = None if case.state.rounding is None else case.state.rounding.clone()
        return FastWeightState(case.state.sub_keys.clone(), case.state.values.clone(), None, rounding)

    expected = run_in_place(case, fresh(), "fp32")
    state = fresh()
    gradient = run_in_place(case, state, undo_log)
    assert torch.equal(state.values, case.state.values) and torch.equal(state.sub_keys, case.state.sub_keys)
    if undo_log == "recompute" or table == torch.bfloat16:
        assert torch.equal(gradient, expected)
    else:
        assert distance(gradient, expected) < 2e-2
