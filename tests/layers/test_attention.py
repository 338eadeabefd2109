"""Windowed attention against a dense mask in float64, and the growth of its memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_fwpkm.layers import attention
from megatron_fwpkm.layers.attention import WindowedAttention, attention_by_document, windowed_attention
from megatron_fwpkm.layers.documents import document_lengths
from megatron_fwpkm.models.transformer_config import transformer_config
from tests.layers.megatron import tiny


def _inputs(length: int, heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(length, 3, heads, 8), (length, 3, groups, 8), (length, 3, groups, 8)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def _dense(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float, starts: Tensor | None = None
) -> Tensor:
    length, batch, heads, _ = query.shape
    key, value = (x.repeat_interleave(heads // key.shape[2], dim=2) for x in (key, value))
    distance = torch.arange(length).view(-1, 1) - torch.arange(length)
    hidden = (distance < 0) | (distance > (length if window is None else window))
    if starts is not None:
        number = starts.cumsum(1)
        hidden = (hidden | (number[:, :, None] != number[:, None, :])).unsqueeze(1)
    scores = torch.einsum("ibhd,jbhd->bhij", query, key) * scale
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("bhij,jbhd->ibhd", weights, value).reshape(length, batch, -1)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("length", "window"),
    [(1, 3), (7, None), (70, None), (70, 0), (70, 3), (64, 31), (100, 32), (100, 45), (40, 38), (40, 39), (40, 99)],
)
def test_equals_a_dense_mask(length: int, window: int | None, groups: int) -> None:
    ours, theirs = _inputs(length, groups=groups), _inputs(length, groups=groups)
    out, expected = windowed_attention(*ours, window, 0.3), _dense(*theirs, window, 0.3)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("window", [5, None])
def test_a_token_sees_nothing_after_it(window: int | None) -> None:
    """Bit for bit: changing token 50 leaves everything before it as it was, and changes what comes after."""
    before = _inputs(80, dtype=torch.float32)
    after = [x.detach().clone() for x in before]
    for x in after:
        x[50] += 1
    out, changed = windowed_attention(*before, window, 0.3), windowed_attention(*after, window, 0.3)
    assert torch.equal(out[:50], changed[:50])
    reach = 80 if window is None else 50 + window + 1
    assert not torch.isclose(out[50:reach], changed[50:reach]).all(-1).any()
    assert torch.equal(out[reach:], changed[reach:])


class _Sizes(TorchDispatchMode):
    """Counts the elements of everything that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.total = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and not func.is_view:
                self.largest, self.total = max(self.largest, x.numel()), self.total + x.numel()
        return result


def _sizes(length: int, window: int | None) -> _Sizes:
    attention._block_mask.cache_clear()
    inputs = _inputs(length, dtype=torch.float32)
    with _Sizes() as sizes:
        windowed_attention(*inputs, window, 0.3).sum().backward()
    return sizes


@pytest.mark.parametrize("window", [15, 200, None])
def test_memory_grows_with_tokens_times_window(window: int | None) -> None:
    """Forward and backward: four times the tokens take four times the memory, and no tensor has a score per pair."""
    short, long = _sizes(1024, window), _sizes(4096, window)
    assert long.total <= 4.2 * short.total
    assert long.largest <= 4.2 * short.largest
    assert long.largest < 4096 * 4096 / 2


def _module(dropout: float = 0.0, window: int | None = 5) -> WindowedAttention:
    config = transformer_config(tiny(model={"attention_dropout": dropout}))
    return WindowedAttention(config, 1, AttnMaskType.causal, "self", window=window)


def test_module_scales_by_the_head_width() -> None:
    inputs = _inputs(20)
    torch.testing.assert_close(_module()(*inputs, None), _dense(*inputs, 5, 8**-0.5), rtol=0, atol=1e-13)


@pytest.mark.parametrize("window", [5, None])
def test_dropout_is_for_training_only(window: int | None) -> None:
    module, inputs = _module(dropout=0.5, window=window), _inputs(20)
    first, second = module(*inputs, None), module(*inputs, None)
    assert not torch.equal(first, second)
    module.eval()
    torch.testing.assert_close(module(*inputs, None), _dense(*inputs, window, 8**-0.5), rtol=0, atol=1e-13)


@pytest.mark.parametrize("start", [1, 3, 40, 69])
@pytest.mark.parametrize("window", [None, 0, 3, 32, 45, 99])
def test_later_queries_see_what_stands_before_them(start: int, window: int | None) -> None:
    """The end of a text, given all keys, is what it is within the whole text."""
    query, key, value = _inputs(70)
    expected = _dense(query, key, value, window, 0.3)[start:]
    grad = torch.randn_like(expected)
    ours = windowed_attention(query[start:], key, value, window, 0.3)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    for mine, theirs in zip(
        torch.autograd.grad(ours, [query, key, value], grad),
        torch.autograd.grad(expected, [query, key, value], grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def _starts(length: int, batch: int = 3) -> Tensor:
    """A sequence of one document, one of many, one with documents of one token."""
    starts = torch.zeros(batch, length, dtype=torch.bool)
    starts[1, ::9] = starts[2, [0, 1, 2, 40, length - 1]] = True
    return starts


@pytest.mark.parametrize("start", [0, 1, 27, 41, 69])
@pytest.mark.parametrize("window", [None, 0, 3, 32])
def test_documents_see_nothing_of_each_other(start: int, window: int | None) -> None:
    """As a dense block-diagonal mask has it, also where the queries are the end of the text."""
    query, key, value = _inputs(70)
    starts = _starts(70)
    expected = _dense(query, key, value, window, 0.3, starts)[start:]
    attend = partial(windowed_attention, window=window, scale=0.3)
    ours = attention_by_document(document_lengths(starts), attend, query[start:], key, value)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    for mine, theirs in zip(
        torch.autograd.grad(ours, [query, key, value], grad),
        torch.autograd.grad(expected, [query, key, value], grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_the_module_takes_documents_in_place_of_a_mask() -> None:
    inputs, starts = _inputs(70), _starts(70)
    torch.testing.assert_close(_module()(*inputs, starts), _dense(*inputs, 5, 8**-0.5, starts), rtol=0, atol=1e-13)


def test_documents_take_no_memory_for_pairs() -> None:
    """No tensor has a score or a mask for every pair of tokens."""
    inputs, starts = _inputs(4096, dtype=torch.float32), torch.zeros(3, 4096, dtype=torch.bool)
    starts[:, ::512] = True
    with _Sizes() as sizes:
        _module(window=None)(*inputs, starts).sum().backward()
    assert sizes.largest <= 3 * 4096 * 4 * 8
