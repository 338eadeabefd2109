"""The chunked rule equals the rule token by token, forward and backward, however a text is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_fwpkm.ops.gated_delta_net.chunked import gated_delta_rule
from megatron_fwpkm.ops.gated_delta_net.reference import delta_rule_by_token

from .cases import RuleCase, rule_case

Rule = Callable[..., tuple[Tensor, Tensor]]


def with_gradients(rule: Rule, case: RuleCase) -> list[Tensor]:
    """Outputs, final state, and the gradients of all inputs for a random loss of both."""
    leaves = [x.clone().requires_grad_() if x is not None and x.is_floating_point() else x for x in case.inputs()]
    found = rule(*leaves)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in found)
    loss.backward()  # type: ignore[union-attr]
    return [*found, *(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Every tensor within `tolerance` of the largest number of the expected one."""
    assert len(found) == len(expected)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        difference, scale = (ours.double() - theirs.double()).abs().max(), theirs.abs().max().clamp(min=1e-3)
        assert difference <= tolerance * scale, f"tensor {number} differs by {difference:.1e} at scale {scale:.1e}"


CASES = {
    "plain": {},
    "one token": {"tokens": 1},
    "one chunk": {"tokens": 64, "with_state": False},
    "chunks and a rest": {"tokens": 150, "repeats": 3},
    "documents": {"tokens": 140, "documents": True},
    "nearly no decay": {"tokens": 200, "decay": 1e-4},
    "strong decay": {"tokens": 100, "decay": 40.0},
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_rule_by_token(name: str) -> None:
    case = rule_case(**CASES[name])
    assert_close(with_gradients(gated_delta_rule, case), with_gradients(delta_rule_by_token, case), 1e-12)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 40), st.booleans(), st.sampled_from([1, 2]))
def test_any_length_and_any_chunk(seed: int, tokens: int, chunk: int, documents: bool, repeats: int) -> None:
    case = rule_case(seed, tokens=tokens, documents=documents, repeats=repeats, batch=1)
    found = gated_delta_rule(*case.inputs(), chunk_size=chunk)
    assert_close(list(found), list(delta_rule_by_token(*case.inputs())), 1e-12)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 80), max_size=4), st.booleans())
def test_any_cut_gives_the_same(seed: int, cuts: list[int], documents: bool) -> None:
    case = rule_case(seed, tokens=80, documents=documents, batch=1)
    outputs, state = [], case.state
    edges = [0, *sorted(cuts), 80]
    for start, stop in zip(edges, edges[1:], strict=False):
        output, state = gated_delta_rule(*case.part(start, stop, state).inputs())
        outputs.append(output)
    assert state is not None
    assert_close([torch.cat(outputs, 1), state], list(gated_delta_rule(*case.inputs())), 1e-12)


def test_a_document_is_read_as_if_it_were_alone() -> None:
    case = rule_case(tokens=90, documents=True, batch=1)
    assert case.starts is not None
    begin = int(case.starts[0].nonzero()[-1])
    alone = case.part(begin, 90, None)
    expected = gated_delta_rule(*alone.inputs()[:5])
    outputs, state = gated_delta_rule(*case.inputs())
    assert_close([outputs[:, begin:], state], list(expected), 1e-12)


@pytest.mark.parametrize("decay", [1e-4, 1.0, 50.0, 1e4, 1e30])
def test_float32_is_enough_for_any_decay(decay: float) -> None:
    case = rule_case(tokens=200, decay=decay, dtype=torch.float32, documents=True)
    exact = [x.double() if x is not None and x.is_floating_point() else x for x in case.inputs()]
    assert_close(
        with_gradients(gated_delta_rule, case),
        with_gradients(delta_rule_by_token, RuleCase(*exact)),  # type: ignore[arg-type]
        2e-6,
    )


def test_a_small_decay_keeps_its_digits_behind_a_large_one() -> None:
    """With differences of running sums exp(-1.25) after 100,000 would be off by 0.4 %."""
    case = rule_case(tokens=3, batch=1, key_heads=1, dtype=torch.float32, with_state=False)
    decays = torch.tensor([-0.5, -100_000.0, -1.25]).view(1, 3, 1)
    inputs = (*case.inputs()[:3], decays, case.strengths)
    exact = delta_rule_by_token(*(x.double() for x in inputs))  # type: ignore[union-attr]
    assert_close(list(gated_delta_rule(*inputs)), list(exact), 1e-6)  # type: ignore[arg-type]


def test_later_tokens_change_nothing_before() -> None:
    case = rule_case(tokens=100)
    changed = case.values.clone()
    changed[:, 70:] = torch.nan
    outputs, _ = gated_delta_rule(case.queries, case.keys, changed, case.log_decays, case.strengths, case.state)
    whole, _ = gated_delta_rule(*case.inputs())
    assert torch.equal(outputs[:, :64], whole[:, :64]), "the chunks before"
    first, _ = gated_delta_rule(*case.part(0, 70, case.state).inputs())
    assert_close([first], [whole[:, :70]], 1e-12)


def test_half_precision_is_computed_in_float32() -> None:
    case = rule_case(tokens=100, dtype=torch.bfloat16)
    outputs, state = gated_delta_rule(*case.inputs())
    assert outputs.dtype == state.dtype == torch.float32
    exact = [x.double() if x is not None and x.is_floating_point() else x for x in case.inputs()]
    assert_close([outputs, state], list(delta_rule_by_token(*exact)), 2e-6)  # type: ignore[arg-type]


def test_no_tokens_leave_the_state_alone() -> None:
    case = rule_case(tokens=1)
    outputs, state = gated_delta_rule(*case.part(0, 0, case.state).inputs())
    assert outputs.shape == (2, 0, 2, 3) and torch.equal(state, case.state)  # type: ignore[arg-type]
