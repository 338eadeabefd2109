"""However a text is cut into calls, the result is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_fwpkm.ops import (
    FastWeightOutput,
    FastWeightState,
    fast_weight_memory,
    fast_weight_memory_,
    flush_pending,
    flush_pending_,
)
from tests.ops.cases import Case, assert_same, assert_same_pending, distance, make_case
from tests.quick_cases import examples


def run_in_pieces(case: Case, cuts: list[int], *, in_place: bool = False, **changes: Any) -> FastWeightOutput:
    """One text in several calls; outputs joined."""
    function = fast_weight_memory_ if in_place else fast_weight_memory
    tokens = case.queries.shape[1]
    state = FastWeightState(case.state.sub_keys.clone(), case.state.values.clone(), case.state.pending)
    outputs = []
    edges = [0, *sorted(cuts), tokens]
    for start, stop in zip(edges, edges[1:], strict=False):
        output = function(
            case.queries[:, start:stop],
            case.targets[:, start:stop],
            None if case.gates is None else case.gates[:, start:stop],
            state,
            mask=None if case.mask is None else case.mask[:, start:stop],
            **{**case.options, **changes},
        )
        state = output.state
        outputs.append(output)
    joined = (
        torch.cat([getattr(output, name) for output in outputs], dim)
        for name, dim in (
            ("retrieved", 1),
            ("slot_indices", 1),
            ("slot_weights", 1),
            ("memorization_loss", 1),
            ("addressing_loss", 0),
        )
    )
    return FastWeightOutput(*joined, state)


@examples(20, 40)
@given(
    cuts=st.lists(st.integers(0, 30), max_size=6),
    chunk_size=st.integers(1, 9),
    lookahead=st.integers(0, 3),
    masked=st.booleans(),
    gated=st.booleans(),
    implementation=st.sampled_from(["reference", "plain", "sparse"]),
)
def test_any_cut_gives_the_same_result(
    cuts: list[int], chunk_size: int, lookahead: int, masked: bool, gated: bool, implementation: str
) -> None:
    case = make_case(
        11, tokens=30, chunk_size=chunk_size, lookahead=lookahead, masked=masked, gated=gated, boundary="carry"
    )
    assert_same(
        run_in_pieces(case, cuts, implementation=implementation), case.run(implementation=implementation), 1e-12
    )


@pytest.mark.parametrize("in_place", [False, True])
def test_token_by_token_in_float32_is_the_same_bits_as_one_call(in_place: bool) -> None:
    case = make_case(
        4, batch=1, tokens=70, heads=1, topk=4, num_subkeys=16, key_dim=32, value_dim=24, chunk_size=16,
        boundary="carry", dtype=torch.float32,
    )  # fmt: skip
    with torch.no_grad():
        expected = case.run()
        actual = run_in_pieces(case, list(range(1, 70)), in_place=in_place)
    for name in ("retrieved", "slot_indices", "slot_weights", "memorization_loss", "addressing_loss"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    assert torch.equal(actual.state.values, expected.state.values)
    assert torch.equal(actual.state.sub_keys, expected.state.sub_keys)
    assert_same_pending(actual.state.pending, expected.state.pending)


def test_carry_without_lookahead_is_drop_without_lookahead() -> None:
    """With no lookahead nothing waits at a chunk's end, so both boundaries write the same."""
    case = make_case(tokens=24, chunk_size=8, lookahead=0)
    drop, carry = case.run(), case.run(boundary="carry")
    assert torch.equal(drop.retrieved, carry.retrieved)
    assert torch.equal(drop.state.values, carry.state.values)


def test_a_mask_that_starts_later_counts_earlier_tokens_as_unmasked() -> None:
    case = make_case(tokens=20, boundary="carry", masked=True)
    assert case.mask is not None
    case.mask[:, :5] = 1
    expected = case.run()
    options = case.options
    assert case.gates is not None
    first = fast_weight_memory(case.queries[:, :5], case.targets[:, :5], case.gates[:, :5], case.state, **options)
    rest = fast_weight_memory(
        case.queries[:, 5:], case.targets[:, 5:], case.gates[:, 5:], first.state, mask=case.mask[:, 5:], **options
    )
    assert distance(rest.state.values, expected.state.values) <= 1e-12


@pytest.mark.parametrize("implementation", ["reference", "plain", "sparse"])
def test_pending_tokens_of_a_longer_chunk_are_written_when_the_chunk_shrinks(implementation: str) -> None:
    """Tokens that wait for a chunk of 20 form chunks of 4 when the next call says so."""
    case = make_case(tokens=18, boundary="carry", chunk_size=20, implementation=implementation)
    state = case.run().state
    assert state.num_pending == 18
    one = make_case(1, tokens=1)
    output = fast_weight_memory(one.queries, one.targets, one.gates, state, **{**case.options, "chunk_size": 4})
    assert output.state.num_pending == 19 - 16 and output.retrieved.shape[1] == 1
    assert output.addressing_loss.shape == (4,)


@pytest.mark.parametrize("implementation", ["reference", "plain", "sparse"])
@pytest.mark.parametrize("in_place", [False, True])
def test_flush_writes_the_complete_pairs_as_a_smaller_chunk(implementation: str, in_place: bool) -> None:
    case = make_case(
        tokens=13, chunk_size=50, lookahead=2, boundary="carry", masked=True, implementation=implementation
    )
    waiting = case.run().state
    assert waiting.num_pending == 13
    # The same as if the chunk had had exactly as many tokens as there are complete pairs.
    expected = case.run(chunk_size=11)
    options = {key: value for key, value in case.options.items() if key != "boundary"}
    state = FastWeightState(waiting.sub_keys.clone(), waiting.values.clone(), waiting.pending)
    output = (flush_pending_ if in_place else flush_pending)(state, **options)
    assert output.retrieved.shape == (2, 0, 4) and output.slot_indices.shape == (2, 0, 2, 3)
    assert distance(output.state.values, expected.state.values) <= 1e-12
    assert distance(output.state.sub_keys, expected.state.sub_keys) <= 1e-12
    assert distance(output.memorization_loss, expected.memorization_loss) <= 1e-12
    assert_same_pending(output.state.pending, expected.state.pending)
    assert output.state.num_pending == 2
    assert (output.state.values is state.values) == in_place
    # Nothing is left to flush.
    again = flush_pending(output.state, **options)
    assert again.state is output.state and again.memorization_loss.shape == (2, 0)


def test_flush_without_pending_tokens_does_nothing() -> None:
    case = make_case()
    output = flush_pending(case.state, topk=3, chunk_size=8)
    assert output.state is case.state and output.retrieved.shape == (1, 0, 4)


def test_pending_tokens_are_detached_copies() -> None:
    case = make_case(tokens=10, boundary="carry").requires_grad()
    pending = case.run().state.pending
    assert pending is not None and pending.num_tokens == 2
    for tensor, source in ((pending.queries, case.queries), (pending.targets, case.targets)):
        assert not tensor.requires_grad
        assert tensor.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
