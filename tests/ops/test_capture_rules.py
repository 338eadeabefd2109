"""What a CUDA graph asks of the operation: no wait, and the same operators whatever the numbers are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fwpkm.ops import FastWeightState, fast_weight_memory_
from tests.ops.capture_rules import CaptureError, CaptureRules
from tests.ops.cases import make_case

_BREAKS = {
    "_local_scalar_dense": lambda x: float(x.sum()),
    "item": lambda x: x.sum().item(),
    "nonzero": lambda x: x.nonzero(),
    "index with a mask": lambda x: x[x > 0],
    "index_put_ with a mask": lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    "masked_select": lambda x: x.masked_select(x > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "tensor": lambda x: x + torch.tensor([1.0]),
    "new_tensor": lambda x: x.new_tensor([1.0]),
}


@pytest.mark.parametrize("what", _BREAKS)
def test_each_break_of_the_rules_is_named(what: str) -> None:
    with pytest.raises(CaptureError, match=rf"^{what} cannot be in a CUDA graph"), CaptureRules():
        _BREAKS[what](torch.ones(3))


def test_what_depends_on_data_without_a_wait_is_found() -> None:
    passes = []
    for size in (2, 3):
        with CaptureRules() as rules:
            torch.ones(size).add_(1)
        passes.append(rules)
    with pytest.raises(AssertionError, match="must not depend on data"):
        passes[0].assert_replays(passes[1])


def test_tensors_of_the_host_may_be_looked_at() -> None:
    starts = torch.tensor([[True, False, True]])
    with CaptureRules(host=(starts,)):
        assert [row.nonzero().flatten().tolist() for row in starts.cpu()] == [[0, 2]]


def run(seed: int, **options: Any) -> CaptureRules:
    """Forward and backward in place, and the undo of its writes."""
    case = make_case(seed, tokens=12, masked=True, dtype=torch.float32, **options).requires_grad()
    state = FastWeightState(case.state.sub_keys.detach().clone(), case.state.values.detach().clone())
    with CaptureRules() as rules:
        output = fast_weight_memory_(case.queries, case.targets, case.gates, state, mask=case.mask, **case.options)
        torch.autograd.grad(output.retrieved.sum() + output.slot_weights.square().sum(), [case.queries, case.targets])
        assert output.undo_log is not None
        output.undo_log.undo_(state)
    assert torch.equal(state.values, case.state.values) and torch.equal(state.sub_keys, case.state.sub_keys)
    return rules


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"boundary": "carry"}, marks=pytest.mark.slow),
        pytest.param({"undo_log": "recompute", "score": "dot_product"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_triton_keeps_the_rules(options: dict[str, Any]) -> None:
    run(1, implementation="triton", **options).assert_replays(run(2, implementation="triton", **options))


def test_sparse_does_not_and_the_line_is_named() -> None:
    with pytest.raises(
        CaptureError, match=r"\(ops/fast_weight_memory/sparse/value_steps.py:\d+: bounds = |selection.py"
    ):
        run(1, implementation="sparse")
