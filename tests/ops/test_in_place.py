"""The in-place form: what it writes, what it leaves alone, how it is undone; backward never needs the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.ops import FastWeightOutput, FastWeightState, ResetJournal, UndoLog, fast_weight_memory_
from tests.ops.cases import Case, assert_same, distance, make_case
from tests.quick_cases import product_cases

IMPLEMENTATIONS = ["reference", "plain", "sparse", "triton"]
# Triton's interpreter takes seconds for what a GPU does in no time.
SMALL: dict[str, Any] = {"batch": 1, "tokens": 11, "chunk_size": 4, "heads": 1, "topk": 2}


def copy_of(state: FastWeightState) -> FastWeightState:
    """The same tables in other memory."""
    return FastWeightState(state.sub_keys.clone(), state.values.clone(), state.pending)


def run_in_place(case: Case, state: FastWeightState, **changes: Any) -> FastWeightOutput:
    """Call the in-place form on `state` with the tokens of `case`."""
    options = {**case.options, **changes}
    return fast_weight_memory_(case.queries, case.targets, case.gates, state, mask=case.mask, **options)


@pytest.mark.parametrize(
    ("grad", "boundary", "implementation"),
    product_cases(
        [True, False],
        ["drop", "carry"],
        IMPLEMENTATIONS,
        quick=lambda grad, boundary, name: name != "triton" or (grad and boundary == "carry"),
    ),
)
def test_in_place_equals_functional(implementation: str, boundary: str, grad: bool) -> None:
    case = make_case(boundary=boundary, masked=True, implementation=implementation, **SMALL)
    state = copy_of(case.state)
    expected = case.run()
    with torch.set_grad_enabled(grad):
        output = run_in_place(case, state)
    assert_same(output, expected, 1e-12)
    assert output.state.values is state.values and output.state.sub_keys is state.sub_keys
    assert output.undo_log is not None


@pytest.mark.parametrize(
    ("boundary", "grad", "implementation"),
    product_cases(
        ["drop", "carry"],
        [True, False],
        IMPLEMENTATIONS,
        quick=lambda boundary, grad, name: name != "triton" or (grad and boundary == "carry"),
    ),
)
def test_the_functional_form_never_modifies_its_inputs(implementation: str, grad: bool, boundary: str) -> None:
    num_pending = 5 if boundary == "carry" else 0
    case = make_case(masked=True, boundary=boundary, num_pending=num_pending, implementation=implementation, **SMALL)
    case = case.requires_grad() if grad else case
    tensors = [*case.leaves().values(), case.mask]
    if case.state.pending is not None:
        pending = case.state.pending
        tensors += [pending.queries, pending.targets, pending.gates, pending.mask]
    copies = [tensor.detach().clone() for tensor in tensors if tensor is not None]
    with torch.set_grad_enabled(grad):
        output = case.run()
    if grad:
        output.retrieved.sum().backward()
    for tensor, copy in zip((t for t in tensors if t is not None), copies, strict=True):
        assert torch.equal(tensor, copy)
    assert not torch.equal(output.state.values, case.state.values)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_forward_forward_backward_backward_is_the_functional_chain(implementation: str) -> None:
    """Under a pipeline the second forward moves the tables before the first backward runs."""
    first = make_case(1, implementation=implementation, **SMALL).requires_grad()
    second = make_case(2, implementation=implementation, **SMALL).requires_grad()
    initial = FastWeightState(first.state.sub_keys.detach(), first.state.values.detach())

    def differentiate(case: Case, output: FastWeightOutput) -> list[Tensor]:
        assert case.gates is not None
        return list(torch.autograd.grad(output.retrieved.square().sum(), [case.queries, case.targets, case.gates]))

    expected = []
    state = initial
    for case in (first, second):
        output = Case(case.queries, case.targets, case.gates, None, state, case.options).run()
        expected.append(differentiate(case, output))
        state = output.state

    tables = copy_of(initial)
    outputs = [run_in_place(case, tables) for case in (first, second)]
    actual = [differentiate(case, output) for case, output in zip((first, second), outputs, strict=True)]
    for mine, theirs in zip(actual, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert distance(one, other) <= 1e-12
    assert distance(tables.values, state.values) <= 1e-12


@pytest.mark.parametrize("implementation", ["plain", "sparse", "triton"])
def test_backward_does_not_look_at_the_table(implementation: str) -> None:
    case = make_case(implementation=implementation, **SMALL).requires_grad()
    state = FastWeightState(case.state.sub_keys.detach().clone(), case.state.values.detach().clone())
    expected = torch.autograd.grad(case.run().retrieved.square().sum(), case.queries)[0]
    output = run_in_place(case, state)
    state.values.fill_(float("nan"))
    state.sub_keys.fill_(float("nan"))
    actual = torch.autograd.grad(output.retrieved.square().sum(), case.queries)[0]
    assert distance(actual, expected) <= 1e-12


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_backward_does_not_modify_the_gradient_it_is_given(implementation: str) -> None:
    """With one sequence the gradient reaches the memory without a copy on the way."""
    case = make_case(implementation=implementation, **SMALL).requires_grad()
    output = case.run()
    given = torch.ones_like(output.retrieved)
    torch.autograd.grad(output.retrieved, case.queries, grad_outputs=given)
    assert torch.equal(given, torch.ones_like(given))


@pytest.mark.parametrize("implementation", ["plain", "sparse", "triton"])
def test_rows_that_are_never_read_do_not_leak(implementation: str) -> None:
    """Untouched rows are NaN; everything that is returned is finite, and they stay NaN."""
    case = make_case(num_subkeys=12, implementation=implementation, **SMALL).requires_grad()
    touched = case.run().slot_indices.unique()
    with torch.no_grad():
        untouched = torch.ones(144, dtype=torch.bool).index_fill_(0, touched, False)
        assert untouched.sum() > 40
        case.state.values[untouched] = float("nan")
    output = case.run()
    output.retrieved.square().sum().backward()
    assert output.retrieved.isfinite().all() and output.memorization_loss.isfinite().all()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in case.leaves().values())
    assert torch.equal(output.state.values.isnan().any(1), untouched)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_undo_logs_restore_bit_for_bit(implementation: str) -> None:
    cases = [make_case(seed, boundary="carry", gated=False, **SMALL) for seed in range(3)]
    state = copy_of(cases[0].state)
    snapshots, logs = [], []
    for case in cases:
        snapshots.append(copy_of(state))
        output = run_in_place(case, FastWeightState(state.sub_keys, state.values), implementation=implementation)
        logs.append(output.undo_log)
    for snapshot, log in zip(reversed(snapshots), reversed(logs), strict=True):
        assert log is not None and not torch.equal(state.values, snapshot.values)
        log.undo_(state)
        assert torch.equal(state.values, snapshot.values)
        assert torch.equal(state.sub_keys, snapshot.sub_keys)


@pytest.mark.parametrize("implementation", ["plain", "sparse", "triton"])
def test_undo_restores_negative_zero_and_nan(implementation: str) -> None:
    case = make_case(implementation=implementation, **SMALL)
    state = copy_of(case.state)
    rows = case.run().slot_indices.unique()
    state.values[rows[0]] = -0.0
    state.values[rows[1]] = float("nan")
    before = state.values.clone().view(torch.int64)
    log = run_in_place(case, state).undo_log
    assert log is not None
    log.undo_(state)
    assert torch.equal(state.values.view(torch.int64), before)


@pytest.mark.parametrize(
    ("implementation", "counts"),
    product_cases(IMPLEMENTATIONS, [True, False], quick=lambda name, counts: name != "triton" or counts),
)
def test_journal_restores_the_initial_memory(implementation: str, counts: bool) -> None:
    cases = [make_case(seed, num_subkeys=9, **SMALL) for seed in range(2)]
    state = copy_of(cases[0].state)
    initial = copy_of(state)
    journal = ResetJournal(81, counts=counts)
    assert journal.slots_and_values() is None and journal.old_sub_keys is None
    for _ in range(2):  # A journal starts anew after a reset.
        read = []
        for case in cases:
            output = run_in_place(case, state, implementation=implementation)
            read.append(output.slot_indices.flatten())
            assert output.undo_log is not None
            journal.record(output.undo_log)
        touched = torch.zeros(81, dtype=torch.bool).index_fill_(0, torch.cat(read), True)
        assert torch.equal(journal.touched, touched) and 0 < touched.sum() < 81
        found = journal.slots_and_values()
        assert found is not None and torch.equal(found[1], initial.values[found[0]])
        assert torch.equal(journal.slots(), found[0])
        assert torch.equal(found[0].unique(), touched.nonzero().flatten())
        assert journal.old_sub_keys is not None and torch.equal(journal.old_sub_keys, initial.sub_keys)
        journal.restore_(state.values, state.sub_keys)
        assert torch.equal(state.values, initial.values) and torch.equal(state.sub_keys, initial.sub_keys)
        assert not journal.slots().numel() and not journal.touched.any() and journal.old_sub_keys is None


def test_journal_takes_from_a_log_of_whole_tables_what_was_read() -> None:
    """Where a chunk has more reads than there are slots."""
    cases = [make_case(seed, batch=1, num_subkeys=4, topk=2, tokens=12, value_dim=8) for seed in range(2)]
    state = copy_of(cases[0].state)
    initial, journal = copy_of(state), ResetJournal(16, counts=False)
    read = []
    for case in cases:
        output = run_in_place(case, state, implementation="triton")
        read.append(output.slot_indices.flatten())
        assert output.undo_log is not None and len(output.undo_log.old_values[0]) == 16
        journal.record(output.undo_log)
    assert torch.equal(journal.touched.nonzero().flatten(), torch.cat(read).unique())
    found = journal.slots_and_values()
    assert found is not None and torch.equal(found[1], initial.values[found[0]])
    journal.restore_(state.values, state.sub_keys)
    assert torch.equal(state.values, initial.values)


def test_journal_can_leave_the_sub_keys_alone() -> None:
    case = make_case()
    state = copy_of(case.state)
    journal = ResetJournal(25)
    log = run_in_place(case, state).undo_log
    assert log is not None
    journal.record(log)
    moved = state.sub_keys.clone()
    journal.restore_(state.values)
    assert torch.equal(state.sub_keys, moved) and torch.equal(state.values, case.state.values)


def test_journal_of_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match="for a table of 25 slots and cannot restore one of 36"):
        ResetJournal(25).restore_(torch.zeros(36, 4))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_frozen_memory_has_nothing_to_undo(implementation: str) -> None:
    case = make_case()
    log = run_in_place(case, copy_of(case.state), inner_lr=0.0, implementation=implementation).undo_log
    assert log == UndoLog([], [], None)
