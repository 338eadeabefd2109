"""The shipped memory against the oracle of `ops`: the same reads, writes and gradients in any cut of a text."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.hf.memory import FastWeights, MemorySettings, MemoryStream, Tokens, read_and_write_chunks
from megatron_fwpkm.ops import FastWeightState, fast_weight_memory, flush_pending

from .builders import memory_inputs

SETTINGS = MemorySettings(topk=3, chunk_size=8, lookahead=1, inner_lr=0.8, addressing_weight=1.2)
VARIANTS = [
    replace(SETTINGS),
    replace(SETTINGS, lookahead=0),
    replace(SETTINGS, lookahead=3, score="dot_product"),
    replace(SETTINGS, addressing_weight=0.0, topk=1),
    replace(SETTINGS, inner_lr=0.0),
]


def check_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def reference(tokens: Tokens, sub_keys: Tensor, values: Tensor, settings: MemorySettings, boundary: str):
    return fast_weight_memory(
        tokens.queries, tokens.targets, tokens.gates, FastWeightState(sub_keys, values), mask=tokens.mask,
        boundary=boundary, implementation="reference", **asdict(settings),
    )  # fmt: skip


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize(("masked", "gated", "heads"), [(False, True, 1), (True, True, 2), (False, False, 2)])
def test_stream_equals_oracle(settings: MemorySettings, masked: bool, gated: bool, heads: int) -> None:
    tokens, sub_keys, values = memory_inputs(settings, heads=heads, masked=masked, gated=gated)
    expected = reference(tokens, sub_keys, values, settings, "carry")
    stream = MemoryStream(sub_keys, values, settings)
    with torch.no_grad():
        check_close(stream.step(tokens), expected.retrieved)
    check_close(stream.sub_keys, expected.state.sub_keys)
    check_close(stream.values, expected.state.values)
    assert stream.num_pending == expected.state.num_pending
    flushed = flush_pending(expected.state, implementation="reference", **asdict(settings)).state
    with torch.no_grad():
        stream.flush()
    check_close(stream.sub_keys, flushed.sub_keys)
    check_close(stream.values, flushed.values)
    assert stream.num_pending == flushed.num_pending == settings.lookahead


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [5, 8, 9, 45])
def test_training_arithmetic_equals_oracle(settings: MemorySettings, masked: bool, tokens: int) -> None:
    text, sub_keys, values = memory_inputs(settings, tokens=tokens, masked=masked)
    with torch.no_grad():
        actual = read_and_write_chunks(text, FastWeights(sub_keys, values, settings))
    check_close(actual, reference(text, sub_keys, values, settings, "drop").retrieved)


@pytest.mark.parametrize("boundary", ["drop", "carry"])
@pytest.mark.parametrize("settings", VARIANTS[:4])
def test_gradients_equal_oracle(settings: MemorySettings, boundary: str) -> None:
    results = []
    for ours in (True, False):
        tokens, sub_keys, values = memory_inputs(settings, tokens=29, masked=True)
        leaves = [t.requires_grad_() for t in (tokens.queries, tokens.targets, tokens.gates, sub_keys, values)]
        if ours and boundary == "drop":
            out = read_and_write_chunks(tokens, FastWeights(sub_keys, values, settings))
        elif ours:
            out = MemoryStream(sub_keys, values, settings).step(tokens)
        else:
            out = reference(tokens, sub_keys, values, settings, boundary).retrieved
        loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
        gradients = torch.autograd.grad(loss, leaves)
        results.append([out, *gradients])
    for ours, expected in zip(*results, strict=True):
        check_close(ours, expected)


@pytest.mark.parametrize("cuts", [[0, 45], range(46), [0, 1, 9, 10, 26, 45], [0, 44, 45]])
@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_any_cut_reads_the_same(cuts: list[int], lookahead: int) -> None:
    settings = replace(SETTINGS, lookahead=lookahead)
    tokens, sub_keys, values = memory_inputs(settings, masked=True)
    whole, cut = (MemoryStream(sub_keys, values, settings) for _ in range(2))
    with torch.no_grad():
        expected = whole.step(tokens)
        check_close(torch.cat([cut.step(tokens.cut(a, b)) for a, b in pairwise(cuts)], 1), expected)
    check_close(cut.values, whole.values)
    check_close(cut.sub_keys, whole.sub_keys)
    assert cut.num_pending == whole.num_pending


def test_a_mask_may_begin_in_the_middle_of_a_text() -> None:
    tokens, sub_keys, values = memory_inputs(SETTINGS, tokens=24)
    ones = replace(tokens, mask=torch.ones(2, 24, dtype=torch.float64))
    plain, mixed = (MemoryStream(sub_keys, values, SETTINGS) for _ in range(2))
    with torch.no_grad():
        expected = plain.step(tokens)
        check_close(torch.cat([mixed.step(tokens.cut(0, 5)), mixed.step(ones.cut(5))], 1), expected)


def test_modes() -> None:
    tokens, sub_keys, values = memory_inputs(SETTINGS)
    stream = MemoryStream(sub_keys, values, SETTINGS)
    with torch.no_grad():
        stream.step(tokens)
        written, waiting = stream.values.clone(), stream.num_pending
        frozen = stream.step(tokens, "frozen")
        check_close(frozen, stream.read(tokens.queries).retrieved)
        off = stream.step(tokens, "off")
        check_close(off, MemoryStream(sub_keys, values, SETTINGS).read(tokens.queries).retrieved)
    assert not torch.equal(frozen, off)
    assert torch.equal(stream.values, written) and stream.num_pending == waiting
    stream.reset()
    assert stream.values is values and stream.num_pending == 0


def test_the_initial_memory_is_never_written() -> None:
    tokens, sub_keys, values = memory_inputs(SETTINGS)
    before = sub_keys.clone(), values.clone()
    stream = MemoryStream(sub_keys, values, SETTINGS)
    with torch.no_grad():
        stream.step(tokens)
        read_and_write_chunks(tokens, FastWeights(sub_keys, values, SETTINGS))
    assert torch.equal(sub_keys, before[0]) and torch.equal(values, before[1])
    assert not torch.equal(stream.values, values)


def test_clones_go_their_own_ways() -> None:
    tokens, sub_keys, values = memory_inputs(SETTINGS)
    stream = MemoryStream(sub_keys, values, SETTINGS)
    with torch.no_grad():
        stream.step(tokens.cut(0, 20))
        twin = stream.clone()
        expected = stream.step(tokens.cut(20))
        moved = stream.values.clone()
        check_close(twin.step(tokens.cut(20)), expected)
        twin.step(tokens)
    assert torch.equal(stream.values, moved) and not torch.equal(twin.values, moved)


def test_gradients_survive_a_later_write_without_gradients() -> None:
    tokens, sub_keys, values = memory_inputs(SETTINGS)
    queries = tokens.queries.requires_grad_()
    stream = MemoryStream(sub_keys, values, SETTINGS)
    out = stream.step(tokens)
    with torch.no_grad():
        stream.step(tokens)
    out.sum().backward()
    assert queries.grad is not None and queries.grad.isfinite().all()


def test_a_stream_may_leave_inference_mode() -> None:
    tokens, sub_keys, values = memory_inputs(SETTINGS)
    whole, stream = (MemoryStream(sub_keys, values, SETTINGS) for _ in range(2))
    with torch.inference_mode():
        first = stream.step(tokens.cut(0, 20))
    with torch.no_grad():
        check_close(torch.cat([first, stream.step(tokens.cut(20))], 1), whole.step(tokens))


def test_a_read_near_a_key_keeps_its_digits_in_float32() -> None:
    """Distances far smaller than the coordinates: the expanded square would leave nothing of them."""
    tokens, sub_keys, values = memory_inputs(SETTINGS, heads=1, batch=1, tokens=4)
    sub_keys = sub_keys + 30
    queries = (sub_keys[0, :, :4].permute(1, 0, 2).reshape(1, 4, 1, 8) + 1e-3).float()
    exact = MemoryStream(sub_keys.float().double(), values, SETTINGS).read(queries.double())
    single = MemoryStream(sub_keys.float(), values.float(), SETTINGS).read(queries)
    torch.testing.assert_close(single.half_scores.double(), exact.half_scores, rtol=1e-5, atol=1e-5)


def test_another_number_of_sequences_is_refused() -> None:
    tokens, sub_keys, values = memory_inputs(SETTINGS)
    stream = MemoryStream(sub_keys, values, SETTINGS)
    with torch.no_grad():
        stream.step(tokens.cut(0, 3))
        one = tokens.map(lambda field: field[:1])
        with pytest.raises(ValueError, match=r"waiting tokens of 2 sequences and this call has 1: .*end_text"):
            stream.step(one)
        stream.end_text()
        stream.step(one)


def test_no_tokens_read_nothing() -> None:
    tokens, sub_keys, values = memory_inputs(SETTINGS)
    stream = MemoryStream(sub_keys, values, SETTINGS)
    assert stream.step(tokens.cut(0, 0)).shape == (2, 0, 5)
    assert read_and_write_chunks(tokens.cut(0, 0), stream).shape == (2, 0, 5)


@pytest.mark.parametrize("boundary", ["carry", "drop"])
def test_autocast_around_the_model_changes_no_digit(boundary: str) -> None:
    settings = MemorySettings(topk=4, chunk_size=8, lookahead=1)
    tokens, sub_keys, values = memory_inputs(settings)
    tokens, sub_keys, values = tokens.map(Tensor.float), sub_keys.float(), values.float()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        stream = MemoryStream(sub_keys, values, settings)
        with torch.no_grad():
            read = stream.step(tokens) if boundary == "carry" else read_and_write_chunks(tokens, stream)
        return read, stream.sub_keys, stream.values

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = run()
    assert all(torch.equal(*pair) for pair in zip(plain, under_autocast, strict=True))
