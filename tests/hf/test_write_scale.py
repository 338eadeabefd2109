"""The authors' streaming arithmetic in the model: where it counts, where it does not, and that nothing cuts a call."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.hf import FwPKMForCausalLM, modeling_fwpkm
from megatron_fwpkm.ops import FastWeightState, fast_weight_memory

from .builders import small_config, small_model, token_ids

FAST_MLP: dict[str, Any] = {
    "fwpkm_layers": [], "fwmlp_layers": [1], "fwmlp_hidden_size": 10, "fwmlp_key_dim": 8, "fwmlp_value_dim": 12,
    "fwmlp_chunk_size": 8,
}  # fmt: skip
KINDS = {"fwpkm": {}, "fwmlp": FAST_MLP}


def model_of(kind: str, scale: str = "official", **changes: Any) -> FwPKMForCausalLM:
    return small_model(**KINDS[kind] | {f"{kind}_write_scale": scale} | changes)


def streamed(model: FwPKMForCausalLM, ids: Tensor, *cuts: int) -> Tensor:
    cache = model.new_cache()
    with torch.no_grad():
        pieces = [model(ids[:, a:b], past_key_values=cache).logits for a, b in pairwise((0, *cuts, ids.shape[1]))]
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cuts_of_a_text_matter(kind: str) -> None:
    ids = token_ids(1, 40)
    for scale in ("consistent", "official"):
        model = model_of(kind, scale)
        same = torch.allclose(streamed(model, ids, *range(20, 40)), streamed(model, ids), atol=1e-10)
        assert same == (scale == "consistent") and model.config.cuts_matter == (scale == "official")


def test_a_stream_computes_what_the_operation_computes() -> None:
    model, ids = model_of("fwpkm"), token_ids(1, 33)
    block = model.model.layers[1].memory
    cache, state, hidden = model.new_cache(), FastWeightState(block.sub_keys, block.values), []
    block.register_forward_pre_hook(lambda module, given: hidden.append(given[0]))
    options = {"topk": 3, "chunk_size": 8, "boundary": "carry", "write_scale": "official"}
    with torch.no_grad():
        for start, stop in pairwise((0, 20, 21, 22, 31, 33)):
            model(ids[:, start:stop], past_key_values=cache)
            state = fast_weight_memory(*block.project(hidden[-1]), state, **options).state
    found = cache.memory[1].state
    assert found.num_pending == state.num_pending
    torch.testing.assert_close(found.whole_values(), state.values, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.sub_keys, state.sub_keys, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_call_is_taken_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = model_of(kind), token_ids(1, 40)
    whole = streamed(model, ids)
    monkeypatch.setattr(modeling_fwpkm, "PREFILL_SEGMENT", 7)
    assert torch.equal(streamed(model, ids), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_without_a_cache(kind: str) -> None:
    ids = token_ids(1, 40)
    with torch.no_grad():
        trained = [model_of(kind, scale)(ids, use_cache=False).logits for scale in ("consistent", "official")]
        carried = model_of(kind, **{f"{kind}_boundary": "carry"})(ids, use_cache=False).logits
    assert torch.equal(*trained)
    torch.testing.assert_close(carried, streamed(model_of(kind), ids), rtol=1e-10, atol=1e-10)


def test_padding_leaves_no_trace() -> None:
    model, ids = model_of("fwpkm"), token_ids(1, 30)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    mask = (torch.arange(35) >= 5).long()[None]
    with torch.no_grad():
        cache = model(padded, attention_mask=mask, use_cache=True).past_key_values
        after = model(ids[:, :3], past_key_values=cache).logits
    alone = streamed(model, torch.cat([ids, ids[:, :3]], 1), 30)[:, 30:]
    torch.testing.assert_close(after, alone, rtol=1e-9, atol=1e-9)


def test_generation_reads_the_prompt_and_then_token_by_token() -> None:
    model, ids = model_of("fwpkm"), token_ids(1, 21)
    found = model.generate(ids, max_new_tokens=20, min_new_tokens=20, do_sample=False, eos_token_id=None)
    assert torch.equal(streamed(model, found[:, :-1], *range(21, 40))[:, 20:].argmax(-1), found[:, 21:])


def test_modes_that_write_nothing_and_flushes() -> None:
    model, ids = model_of("fwpkm", fwpkm_lookahead=2), token_ids(1, 20)
    cache = model.new_cache()
    with torch.no_grad():
        model(ids, past_key_values=cache)
        before = cache.memory[1].state
        model(ids[:, :1], past_key_values=cache, memory="frozen")
        assert cache.memory[1].state is before
        assert before.num_pending == 4
        values = before.whole_values().clone()
        cache.end_text()
    assert cache.memory[1].state.pending is None and not torch.equal(cache.memory[1].state.whole_values(), values)


@pytest.mark.parametrize("implementation", ["sparse", "reference"])
def test_what_an_installed_package_computes(implementation: str) -> None:
    """In modes that write nothing too, where one token is fewer than a lookahead."""
    ids = token_ids(1, 20)
    plain = model_of("fwpkm", fwpkm_lookahead=2)
    other = model_of("fwpkm", fwpkm_lookahead=2, fwpkm_implementation=implementation)
    torch.testing.assert_close(streamed(other, ids, 9, 10), streamed(plain, ids, 9, 10), rtol=1e-9, atol=1e-9)
    other.memory_mode = plain.memory_mode = "off"
    torch.testing.assert_close(streamed(other, ids, 1), streamed(plain, ids, 1), rtol=1e-9, atol=1e-9)


def test_the_fields_are_checked_and_saved(tmp_path: Path) -> None:
    for kind, sizes in KINDS.items():
        with pytest.raises(ValueError, match=f"{kind}_write_scale='paper' is not known; choose one of: cons"):
            small_config(**sizes | {f"{kind}_write_scale": "paper"})
        small_model(dtype=torch.float32, **sizes | {f"{kind}_write_scale": "official"}).save_pretrained(tmp_path / kind)
        loaded = FwPKMForCausalLM.from_pretrained(tmp_path / kind)
        assert loaded.model.layers[1].memory.new_memory().options.write_scale == "official"
        assert loaded.model.layers[1].memory.options.write_scale == "consistent"
