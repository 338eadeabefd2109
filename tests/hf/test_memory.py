"""What a cache holds of a layer against the oracle of `ops`: the same reads and writes in any cut of a text."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.ops import FastWeightState, MemoryOptions, fast_weight_memory, flush_pending
from megatron_fwpkm.ops.fast_weight_memory.plain import read_tables

from .builders import Tokens, layer_memory, memory_inputs

OPTIONS = MemoryOptions(topk=3, chunk_size=8, inner_lr=0.8, addressing_weight=1.2, boundary="carry")
VARIANTS = [
    replace(OPTIONS),
    replace(OPTIONS, lookahead=0),
    replace(OPTIONS, lookahead=3, score="dot_product"),
    replace(OPTIONS, addressing_weight=0.0, topk=1),
    replace(OPTIONS, inner_lr=0.0),
]


def check_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def reference(tokens: Tokens, sub_keys: Tensor, values: Tensor, options: MemoryOptions):
    return fast_weight_memory(
        tokens.queries, tokens.targets, tokens.gates, FastWeightState(sub_keys, values), options, mask=tokens.mask,
        implementation="reference",
    )  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize(("masked", "gated", "heads"), [(False, True, 1), (True, True, 2), (False, False, 2)])
def test_stream_equals_oracle(options: MemoryOptions, masked: bool, gated: bool, heads: int) -> None:
    tokens, sub_keys, values = memory_inputs(options, heads=heads, masked=masked, gated=gated)
    expected = reference(tokens, sub_keys, values, options)
    stream = layer_memory(sub_keys, values, options)
    with torch.no_grad():
        check_close(tokens.into(stream), expected.retrieved)
    check_close(stream.state.sub_keys, expected.state.sub_keys)
    check_close(stream.state.values, expected.state.values)
    assert stream.state.num_pending == expected.state.num_pending
    flushed = flush_pending(expected.state, options, implementation="reference").state
    with torch.no_grad():
        stream.flush()
    check_close(stream.state.sub_keys, flushed.sub_keys)
    check_close(stream.state.values, flushed.values)
    assert stream.state.num_pending == flushed.num_pending == options.lookahead


@pytest.mark.parametrize("cuts", [[0, 45], range(46), [0, 1, 9, 10, 26, 45], [0, 44, 45]])
@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_any_cut_reads_the_same(cuts: list[int], lookahead: int) -> None:
    options = replace(OPTIONS, lookahead=lookahead)
    tokens, sub_keys, values = memory_inputs(options, masked=True)
    whole, cut = (layer_memory(sub_keys, values, options) for _ in range(2))
    with torch.no_grad():
        expected = tokens.into(whole)
        check_close(torch.cat([tokens.cut(a, b).into(cut) for a, b in pairwise(cuts)], 1), expected)
    check_close(cut.state.values, whole.state.values)
    check_close(cut.state.sub_keys, whole.state.sub_keys)
    assert cut.state.num_pending == whole.state.num_pending


def test_a_mask_may_begin_in_the_middle_of_a_text() -> None:
    tokens, sub_keys, values = memory_inputs(OPTIONS, tokens=24)
    ones = replace(tokens, mask=torch.ones(2, 24, dtype=torch.float64))
    plain, mixed = (layer_memory(sub_keys, values, OPTIONS) for _ in range(2))
    with torch.no_grad():
        expected = tokens.into(plain)
        check_close(torch.cat([tokens.cut(0, 5).into(mixed), ones.cut(5).into(mixed)], 1), expected)


def test_modes() -> None:
    tokens, sub_keys, values = memory_inputs(OPTIONS)
    stream = layer_memory(sub_keys, values, OPTIONS)
    with torch.no_grad():
        tokens.into(stream)
        written, waiting = stream.state.values.clone(), stream.state.num_pending
        frozen = tokens.into(stream, "frozen")
        check_close(frozen, read_tables(tokens.queries, stream.state.sub_keys, stream.state.values, OPTIONS).retrieved)
        off = tokens.into(stream, "off")
        check_close(off, read_tables(tokens.queries, sub_keys, values, OPTIONS).retrieved)
    assert not torch.equal(frozen, off)
    assert torch.equal(stream.state.values, written) and stream.state.num_pending == waiting
    stream.reset()
    assert stream.state.values is values and stream.state.num_pending == 0


def test_the_initial_memory_is_never_written() -> None:
    tokens, sub_keys, values = memory_inputs(OPTIONS)
    before = sub_keys.clone(), values.clone()
    stream = layer_memory(sub_keys, values, OPTIONS)
    with torch.no_grad():
        tokens.into(stream)
    assert torch.equal(sub_keys, before[0]) and torch.equal(values, before[1])
    assert not torch.equal(stream.state.values, values)


def test_clones_go_their_own_ways() -> None:
    tokens, sub_keys, values = memory_inputs(OPTIONS)
    stream = layer_memory(sub_keys, values, OPTIONS)
    with torch.no_grad():
        tokens.cut(0, 20).into(stream)
        twin = stream.clone()
        expected = tokens.cut(20).into(stream)
        moved = stream.state.values.clone()
        check_close(tokens.cut(20).into(twin), expected)
        tokens.into(twin)
    assert torch.equal(stream.state.values, moved) and not torch.equal(twin.state.values, moved)


def test_gradients_survive_a_later_write_without_gradients() -> None:
    tokens, sub_keys, values = memory_inputs(OPTIONS)
    queries = tokens.queries.requires_grad_()
    stream = layer_memory(sub_keys, values, OPTIONS)
    out = tokens.into(stream)
    with torch.no_grad():
        tokens.into(stream)
    out.sum().backward()
    assert queries.grad is not None and queries.grad.isfinite().all()


def test_a_stream_may_leave_inference_mode() -> None:
    tokens, sub_keys, values = memory_inputs(OPTIONS)
    whole, stream = (layer_memory(sub_keys, values, OPTIONS) for _ in range(2))
    with torch.inference_mode():
        first = tokens.cut(0, 20).into(stream)
    with torch.no_grad():
        check_close(torch.cat([first, tokens.cut(20).into(stream)], 1), tokens.into(whole))


def test_a_read_near_a_key_keeps_its_digits_in_float32() -> None:
    """Distances far smaller than the coordinates: the expanded square would leave nothing of them."""
    tokens, sub_keys, values = memory_inputs(OPTIONS, heads=1, batch=1, tokens=4)
    sub_keys = sub_keys + 30
    queries = (sub_keys[0, :, :4].permute(1, 0, 2).reshape(1, 4, 1, 8) + 1e-3).float()
    exact = read_tables(queries.double(), sub_keys.float().double(), values, OPTIONS)
    single = read_tables(queries, sub_keys.float(), values.float(), OPTIONS)
    torch.testing.assert_close(single.half_scores.double(), exact.half_scores, rtol=1e-5, atol=1e-5)


def test_another_number_of_sequences_is_refused() -> None:
    tokens, sub_keys, values = memory_inputs(OPTIONS)
    stream = layer_memory(sub_keys, values, OPTIONS)
    with torch.no_grad():
        tokens.cut(0, 3).into(stream)
        one = tokens.map(lambda field: field[:1])
        with pytest.raises(ValueError, match="batch size 1, but the tokens that wait in the cache have 2; .*end_text"):
            one.into(stream)
        stream.end_text()
        one.into(stream)


def test_no_tokens_read_nothing() -> None:
    tokens, sub_keys, values = memory_inputs(OPTIONS)
    stream = layer_memory(sub_keys, values, OPTIONS)
    assert tokens.cut(0, 0).into(stream).shape == (2, 0, 5)


def test_autocast_around_the_model_changes_no_digit() -> None:
    options = replace(OPTIONS, topk=4)
    tokens, sub_keys, values = memory_inputs(options)
    tokens, sub_keys, values = tokens.map(Tensor.float), sub_keys.float(), values.float()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        stream = layer_memory(sub_keys, values, options)
        with torch.no_grad():
            read = tokens.into(stream)
        return read, stream.state.sub_keys, stream.state.values

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = run()
    assert all(torch.equal(*pair) for pair in zip(plain, under_autocast, strict=True))
