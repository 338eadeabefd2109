"""A compiled function has the memory as one operator: no graph break, the same numbers as without the compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.ops import (
    FastWeightState,
    MemoryOptions,
    fast_weight_memory,
    fast_weight_memory_,
    flush_pending,
    flush_pending_,
    make_rounding,
)
from megatron_fwpkm.ops.fast_weight_memory import api
from megatron_fwpkm.ops.fast_weight_memory.opaque_call import _by_name, _spec
from megatron_fwpkm.ops.row_overlay import RowOverlay
from tests.ops.cases import Case, assert_same, make_case
from tests.quick_cases import product_cases

SMALL = {"batch": 1, "tokens": 11, "num_subkeys": 4}
CASES = {
    "training": {**SMALL, "masked": True},
    "streaming": {**SMALL, "boundary": "carry", "num_pending": 5, "chunk_size": 8},
    "nothing moves": {**SMALL, "inner_lr": 0.0, "gated": False},
    "nothing is written": {**SMALL, "tokens": 3, "boundary": "carry", "addressing_weight": 0.0},
}


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """tests/conftest.py switches it off."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """With an error where the graph would break."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def loss_and_state(case: Case) -> tuple[Tensor, Any]:
    """Something around the memory, which is compiled with it."""
    output = fast_weight_memory(
        case.queries.sin(), case.targets * 2, case.gates, case.state, MemoryOptions(**case.options), mask=case.mask
    )
    return output.retrieved.square().sum() + (output.slot_weights * output.slot_weights).sum(), output


@pytest.mark.parametrize("implementation", ["sparse", pytest.param("plain", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_numbers_and_gradients_are_those_without_the_compiler(name: str, implementation: str) -> None:
    found = []
    for run in (loss_and_state, compiled(loss_and_state)):
        case = make_case(5, **CASES[name], implementation=implementation).requires_grad()
        loss, output = run(case)
        leaves = list(case.leaves().values())
        found.append((loss, output, torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)))
    (loss, output, gradients), (actual, actual_output, actual_gradients) = found
    assert torch.equal(actual, loss)
    assert_same(actual_output, output, 0.0)
    assert not actual_output.memorization_loss.requires_grad and not actual_output.state.values.requires_grad
    for one, other in zip(actual_gradients, gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grad", [True, False])
def test_tables_are_written_in_place(grad: bool) -> None:
    def run(queries: Tensor, targets: Tensor, state: FastWeightState) -> tuple[Tensor, Tensor]:
        first = fast_weight_memory_(queries, targets, None, state, topk=2, chunk_size=4, implementation="sparse")
        second = fast_weight_memory_(queries, targets, None, first.state, topk=2, chunk_size=4, implementation="sparse")
        return first.retrieved, second.retrieved

    found = []
    for function in (run, compiled(run)):
        case = make_case(6, **SMALL)
        state = FastWeightState(case.state.sub_keys.clone(), case.state.values.clone())
        queries = case.queries.clone().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            reads = function(queries, case.targets, state)
        gradients = torch.autograd.grad(reads[0].sum() + reads[1].square().sum(), queries) if grad else ()
        found.append([*reads, state.sub_keys, state.values, *gradients])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_pending_tokens_and_rounding_pass_through() -> None:
    def run(queries: Tensor, targets: Tensor, state: FastWeightState, in_place: bool) -> FastWeightState:
        options = {"topk": 2, "chunk_size": 4, "implementation": "sparse", "boundary": "carry"}
        write, flush = (fast_weight_memory_, flush_pending_) if in_place else (fast_weight_memory, flush_pending)
        return flush(write(queries, targets, None, state, **options).state, **options).state

    case = make_case(7, **SMALL, dtype=torch.float32)
    found = []
    for function in (run, compiled(run)):
        for in_place in (False, True):
            values, rounding = case.state.values.bfloat16(), make_rounding(3)
            state = FastWeightState(case.state.sub_keys.clone(), values, rounding=rounding)
            with torch.no_grad():
                after = function(case.queries, case.targets, state, in_place)
            assert (after.values is values) is in_place and after.num_pending == 1
            found.append([after.sub_keys, after.values, after.rounding, after.pending.queries, after.pending.targets])
    assert all(torch.equal(one, other) for other in found[1:] for one, other in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", product_cases(CASES, quick="training".__eq__))
def test_the_operator_keeps_what_it_registers(name: str) -> None:
    """Torch's own check: schema, fake shapes, autograd, and the same under the compiler with symbols for sizes."""
    case = make_case(8, **CASES[name], implementation="sparse").requires_grad()
    given = _by_name(case.queries, case.targets, case.gates, case.mask, case.state)
    wants = [tensor.requires_grad for tensor in given.values()]
    spec = _spec(MemoryOptions(**case.options), tuple(given))
    found = torch.library.opcheck(api._OPERATOR.operator, (list(given.values()), spec, wants))
    assert set(found.values()) == {"SUCCESS"}


def test_without_a_compiled_function_the_compiler_is_not_imported() -> None:
    check = "import sys, megatron_fwpkm.ops; print({'torch._dynamo', 'sympy', 'triton'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=100, check=True).stdout
    assert said == "set()\n"


def test_an_overlay_is_refused() -> None:
    case = make_case(**SMALL)
    state = replace(case.state, overlay=RowOverlay(case.state.values))
    with pytest.raises(ValueError, match="cannot trace a memory with an overlay"):
        api._OPERATOR(case.queries, case.targets, case.gates, None, state, MemoryOptions(**case.options))
