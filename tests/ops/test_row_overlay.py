"""A memory whose rows lie over a base is the memory with a table of its own, bit for bit, and leaves the base alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from megatron_fwpkm.ops import FastWeightState, fast_weight_memory, fast_weight_memory_, flush_pending, flush_pending_
from megatron_fwpkm.ops.row_overlay import RowOverlay
from tests.ops.cases import Case, gradients, make_case
from tests.ops.test_implementations import configurations

IMPLEMENTATIONS = ["plain", "sparse", pytest.param("triton", marks=pytest.mark.slow)]


def overlaid(state: FastWeightState) -> FastWeightState:
    return replace(state, overlay=RowOverlay(state.values))


def assert_equal_states(actual: FastWeightState, expected: FastWeightState) -> None:
    assert torch.equal(actual.sub_keys, expected.sub_keys)
    assert torch.equal(actual.whole_values(), expected.values)
    assert actual.num_pending == expected.num_pending


def assert_equal_outputs(actual: Any, expected: Any) -> None:
    for name in ("retrieved", "slot_indices", "slot_weights", "memorization_loss", "addressing_loss"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    assert_equal_states(actual.state, expected.state)


def assert_the_same(implementation: str, configuration: dict[str, Any]) -> None:
    case = make_case(**configuration)
    options = {**case.options, "implementation": implementation}
    tokens = case.queries, case.targets, case.gates
    base = case.state.values.clone()
    whole, over = case.state, overlaid(case.state)
    for step in range(2):  # the second call finds rows of its own
        function = fast_weight_memory_ if step else fast_weight_memory
        before = over
        expected = function(*tokens, whole, mask=case.mask, **options)
        actual = function(*tokens, over, mask=case.mask, **options)
        assert_equal_outputs(actual, expected)
        assert step or len(before.overlay) == 0  # inputs are never modified
        whole, over = expected.state, actual.state
    flush = {name: value for name, value in options.items() if name not in ("boundary",)}
    assert_equal_states(flush_pending(over, **flush).state, flush_pending(whole, **flush).state)
    assert torch.equal(case.state.values, base)
    assert over.overlay is not None and len(over.overlay) <= 2 * case.queries[..., 0].numel() * options["topk"] + 12 * 9


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(configurations())
def test_plain_over_a_base_is_plain(configuration: dict[str, Any]) -> None:
    assert_the_same("plain", configuration)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(configurations())
def test_sparse_over_a_base_is_sparse(configuration: dict[str, Any]) -> None:
    assert_the_same("sparse", configuration)


def test_triton_over_a_base_is_triton() -> None:
    assert_the_same(
        "triton", dict(tokens=6, batch=1, heads=1, chunk_size=4, boundary="carry", dtype=torch.float32, masked=True)
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("boundary", ["drop", "carry"])
def test_gradients_pass_to_tokens_and_base(implementation: str, boundary: str) -> None:
    kind = torch.float32 if implementation == "triton" else torch.float64
    case = make_case(tokens=11, chunk_size=4, boundary=boundary, dtype=kind, implementation=implementation)
    _, expected = gradients(case)
    _, actual = gradients(OverlaidCase(**vars(case)))
    for name, gradient in expected.items():
        assert torch.allclose(actual[name], gradient, rtol=0, atol=1e-15 if kind == torch.float64 else 1e-6), name


class OverlaidCase(Case):
    """A case whose leaves are under an overlay."""

    def requires_grad(self) -> Case:
        case = super().requires_grad()
        return replace(case, state=overlaid(case.state))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_call_is_undone(implementation: str) -> None:
    kind = torch.float32 if implementation == "triton" else torch.float64
    case = make_case(tokens=11, chunk_size=4, dtype=kind, implementation=implementation)
    tokens = case.queries, case.targets, case.gates
    state = fast_weight_memory(*tokens, overlaid(case.state), **case.options).state
    before = state.whole_values(), state.sub_keys.clone()
    output = fast_weight_memory_(*(-x if x is not None else x for x in tokens[:2]), tokens[2], state, **case.options)
    assert not torch.equal(output.state.whole_values(), before[0])
    assert output.undo_log is not None
    output.undo_log.undo_(output.state)
    assert torch.equal(output.state.whole_values(), before[0]) and torch.equal(output.state.sub_keys, before[1])


def test_waiting_tokens_are_written_in_place() -> None:
    case = make_case(tokens=7, chunk_size=16, boundary="carry", implementation="plain")
    case.options.pop("boundary")
    tokens = case.queries, case.targets, case.gates
    read = fast_weight_memory(*tokens, overlaid(case.state), boundary="carry", **case.options).state
    assert len(read.overlay) == 0  # nothing was written yet
    flushed = flush_pending_(replace(read, sub_keys=read.sub_keys.clone()), **case.options).state
    assert len(flushed.overlay) > 0 and flushed.overlay is read.overlay


def test_rows_are_added_read_and_copied() -> None:
    base = torch.arange(12.0).view(6, 2)
    overlay = RowOverlay(base)
    assert len(overlay) == 0 and torch.equal(overlay.gather(torch.tensor([3, 3])), base[[3, 3]])
    rows = overlay.own(torch.tensor([[4, 1], [4, 5]]))
    assert torch.equal(overlay.slots[rows], torch.tensor([[4, 1], [4, 5]])) and len(overlay) == 3
    overlay.table.add_(100)
    twin = overlay.copy()
    twin.table.zero_()
    assert torch.equal(overlay.own(torch.tensor([0, 4])), torch.tensor([3, 1]))  # places stay
    assert torch.equal(overlay.gather(torch.tensor([0, 1, 4])), torch.tensor([[0.0, 1], [102, 103], [108, 109]]))
    slots, found = overlay.touched()
    assert slots.tolist() == [0, 1, 4, 5] and torch.equal(found, overlay.whole()[slots])
    assert torch.equal(RowOverlay(base, slots, found).whole(), overlay.whole())
    assert torch.equal(base, torch.arange(12.0).view(6, 2)) and torch.equal(twin.whole()[4], torch.zeros(2))
    assert len(twin) == 3 and overlay.nbytes > 4 * 2 * 4


def test_no_slots_take_no_rows() -> None:
    overlay = RowOverlay(torch.zeros(4, 2))
    assert overlay.own(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3) and len(overlay) == 0


def refused(case: Case, state: FastWeightState, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fast_weight_memory(case.queries, case.targets, case.gates, state, **{**case.options, **options})


def test_what_an_overlay_cannot_do_is_refused() -> None:
    case = make_case(tokens=7, chunk_size=4)
    refused(case, overlaid(case.state), "requires a whole table", implementation="reference")
    refused(case, replace(overlaid(case.state), values=case.state.values.clone()), "another table", topk=3)
    half = replace(make_case(tokens=7, chunk_size=4, dtype=torch.float32).state, rounding=torch.zeros(3).long())
    half = overlaid(replace(half, values=half.values.bfloat16()))
    refused(make_case(tokens=7, chunk_size=4, dtype=torch.float32), half, "got bfloat16", implementation="sparse")
