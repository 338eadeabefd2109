"""What is done in blocks that fit a core's cache has the bits of what is done at once; so has another sort."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_fwpkm.ops import FastWeightState, make_rounding
from megatron_fwpkm.ops.fast_weight_memory.key_rows import sort_readers
from megatron_fwpkm.ops.product_key import selection
from tests.ops.cases import gradients, make_case


@pytest.mark.parametrize("bfloat16", [False, True])
def test_blocks_change_no_bit(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a single token or slot, against a whole chunk."""
    sizes = {"batch": 2, "tokens": 24, "heads": 2, "num_subkeys": 5, "topk": 3}
    case = make_case(7, dtype=torch.float32, implementation="sparse", **sizes)
    if bfloat16:
        values = case.state.values.bfloat16()
        case = replace(case, state=FastWeightState(case.state.sub_keys, values, rounding=make_rounding(1)))
    whole, whole_gradients = gradients(case)
    monkeypatch.setattr(selection, "BLOCK_NUMBERS", 1)
    blocks, block_gradients = gradients(case)
    for name in ("sub_keys", "values"):
        assert torch.equal(getattr(blocks.state, name), getattr(whole.state, name))
    assert torch.equal(blocks.retrieved, whole.retrieved)
    for name, gradient in block_gradients.items():
        assert torch.equal(gradient, whole_gradients[name]), name


def test_readers_are_sorted_alike_by_both_sorts() -> None:
    """30 lists of 1,100 sub-keys do not fit 16 bits, 20 lists do; tokens ascend among equals."""
    indices = torch.randint(1100, (30, 40, 3), generator=torch.Generator().manual_seed(0))
    long, short = sort_readers(indices, 1100), sort_readers(indices[:20], 1100)
    pairs = 20 * 40 * 3
    assert torch.equal(long.order[:pairs], short.order)
    assert torch.equal(long.starts[: 20 * 1100 + 1], short.starts)
    keys = (indices + torch.arange(30).view(-1, 1, 1) * 1100).flatten()
    assert torch.equal(long.order, torch.argsort(keys, stable=True))
