"""The language model: streaming, masks, training mode, generation and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from megatron_fwpkm.hf import FwPKMCache, FwPKMForCausalLM, modeling_fwpkm
from megatron_fwpkm.hf.attention import causal_attention

from .builders import small_model, token_ids

LAYOUTS = [
    {},
    {"attention_windows": None, "fwpkm_layers": [0, 1], "fwpkm_lookahead": 0},
    {
        "attention_windows": [1, None],
        "tie_word_embeddings": False,
        "linear_bias": True,
        "qk_norm": False,
        "fwpkm_gate": False,
    },
    {
        "fwpkm_gate_writes": False,
        "fwpkm_score": "dot_product",
        "fwpkm_lookahead": 2,
        "fwpkm_num_heads": 2,
        "fwpkm_normalize_targets": False,
    },
    {"fwpkm_layers": [], "attention_output_gate": True, "yarn_factor": 4.0, "yarn_original_length": 16},
]


def logits_in_pieces(model: FwPKMForCausalLM, ids: Tensor, cuts: list[int], cache: FwPKMCache | None = None) -> Tensor:
    cache = cache or model.new_cache()
    with torch.no_grad():
        return torch.cat([model(ids[:, a:b], past_key_values=cache).logits for a, b in pairwise(cuts)], 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_cut_gives_the_same_logits(layout: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = small_model(**layout, memory="shared"), token_ids(2, 50)
    whole = logits_in_pieces(model, ids, [0, 50])
    for cuts in (list(range(51)), [0, 1, 17, 18, 43, 50]):
        torch.testing.assert_close(logits_in_pieces(model, ids, cuts), whole, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(modeling_fwpkm, "PREFILL_SEGMENT", 7)
    torch.testing.assert_close(logits_in_pieces(model, ids, [0, 50]), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_later_tokens_do_not_change_earlier_logits(layout: dict[str, object]) -> None:
    """Bit for bit, streaming and in training arithmetic."""
    model, ids = small_model(**layout), token_ids(1, 40)
    changed = ids.clone()
    changed[:, 23] = 3 + (changed[:, 23] - 2) % 60
    for use_cache in (True, False):
        with torch.no_grad():
            before, after = (model(x, use_cache=use_cache).logits for x in (ids, changed))
        assert torch.equal(before[:, :23], after[:, :23])
        assert not torch.equal(before[:, 23:], after[:, 23:])


def test_the_window_is_all_that_attention_keeps() -> None:
    model = small_model()
    cache = model.new_cache()
    logits_in_pieces(model, token_ids(1, 40), [0, 30, 40], cache)
    for layer in cache.layers:
        assert layer.keys.shape[-2] == 5 and layer.keys.untyped_storage().nbytes() == layer.keys.numel() * 8
    assert cache.get_seq_length() == 40
    assert cache.memory[1].state.num_pending == 8  # the fifth chunk still waits for its last target


@pytest.mark.parametrize("window", [1, 3, 200, None])
@pytest.mark.parametrize(("queries", "past"), [(1, 9), (130, 0), (130, 300), (300, 5)])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_the_dense_formula(window: int | None, queries: int, past: int, padded: bool) -> None:
    generator = torch.Generator().manual_seed(queries)
    q = torch.randn(2, 4, queries, 6, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(2, 2, past + queries, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    rows, columns = torch.arange(past, past + queries).unsqueeze(1), torch.arange(past + queries)
    seen = (columns <= rows) & (columns > rows - (window or 10**6))
    key_mask = None
    if padded:
        key_mask = torch.ones(2, past + queries, dtype=torch.bool)
        key_mask[1, :4] = False
        seen = (seen & key_mask[:, None, None]) | (columns == rows)
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) / 6**0.5
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(causal_attention(q, k, v, window, key_mask), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("window", "limit"), [(8, 3000 * 40), (None, 1 << 22)])
def test_attention_never_builds_a_square(window: int | None, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call computes is bounded by the window or by a block, however long the text and its past are."""
    sizes = []
    original = torch.nn.functional.scaled_dot_product_attention

    def recorded(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        sizes.append(q.shape[0] * q.shape[2] * k.shape[2])
        return original(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    q, kv = torch.randn(1, 1, 3000, 2), torch.randn(1, 1, 5000, 2)
    assert causal_attention(q, kv, kv, window).shape == q.shape
    assert max(sizes) <= limit < 3000 * 5000


def test_frozen_and_off() -> None:
    model, ids = small_model(), token_ids(1, 40)
    cache = model.new_cache()
    fresh = logits_in_pieces(model, ids, [0, 40], cache)
    cache.end_text()
    written = cache.memory[1].state.whole_values().clone()
    with torch.no_grad():
        frozen = model(ids, cache=cache, memory="frozen").logits
    assert model.memory_mode == "on"
    assert torch.equal(cache.memory[1].state.whole_values(), written)
    cache.end_text()
    model.memory_mode = "off"
    off = logits_in_pieces(model, ids, [0, 40], cache)
    torch.testing.assert_close(off[:, :8], fresh[:, :8], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(off[:, 9:], fresh[:, 9:]) and not torch.allclose(off, frozen)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, use_cache=False).logits, off, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="memory_mode='full' is not known; choose one of: on, frozen, off"):
        model.memory_mode = "full"


def test_flush_end_reset_and_clone() -> None:
    model, ids = small_model(), token_ids(1, 30)
    cache = model.new_cache()
    logits_in_pieces(model, ids[:, :20], [0, 20], cache)
    twin = cache.clone()
    after = logits_in_pieces(model, ids[:, 20:], [0, 10], cache)
    torch.testing.assert_close(logits_in_pieces(model, ids[:, 20:], [0, 3, 10], twin), after, rtol=1e-12, atol=1e-12)
    before = twin.memory[1].state.whole_values().clone()
    twin.flush_memory()
    assert twin.memory[1].state.num_pending == 1 and not torch.equal(twin.memory[1].state.whole_values(), before)
    assert twin.get_seq_length() == 30
    twin.end_text()
    assert twin.memory[1].state.num_pending == 0 and twin.get_seq_length() == 0
    cache.reset()
    first = logits_in_pieces(model, ids, [0, 30], model.new_cache())
    assert torch.equal(logits_in_pieces(model, ids, [0, 30], cache), first)
    cache.reset_memory()
    assert cache.get_seq_length() == 30
    assert torch.equal(cache.memory[1].state.whole_values(), model.model.layers[1].memory.values)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("boundary", ["drop", "carry"])
def test_training_starts_from_the_initial_memory_and_has_gradients(boundary: str) -> None:
    model, ids = small_model(fwpkm_boundary=boundary, memory="shared"), token_ids(2, 30)
    model.train()
    out = model(ids, labels=ids)
    assert out.past_key_values is None
    out.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
    first = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, first[name], rtol=1e-12, atol=1e-12)
    model.eval()
    with torch.no_grad():
        streamed, trained = model(ids).logits, model(ids, use_cache=False).logits
    assert torch.allclose(streamed, trained) == (boundary == "carry")


def test_generate_is_greedy_decoding_through_the_memory() -> None:
    model, ids = small_model(memory="shared"), token_ids(2, 20)
    model.generation_config.eos_token_id = None
    generated = model.generate(ids, max_new_tokens=25, do_sample=False)
    by_hand = ids
    with torch.no_grad():
        for _ in range(25):
            by_hand = torch.cat([by_hand, model(by_hand).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, by_hand)
    torch.manual_seed(1)
    sampled = model.generate(ids, max_new_tokens=25, do_sample=True, num_return_sequences=2)
    assert sampled.shape == (4, 45) and not torch.equal(sampled[0], sampled[1])
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)[:, :20], ids)


def test_generate_goes_on_from_a_memory() -> None:
    """A document is read, its text ended, and the prompt is all that generate is given."""
    model, document, prompt = small_model(), token_ids(1, 40, seed=1), token_ids(1, 7, seed=2)
    model.generation_config.eos_token_id = None
    cache = model.new_cache()
    logits_in_pieces(model, document, [0, 40], cache)
    cache.end_text()
    twin = cache.clone()
    generated = model.generate(prompt, past_key_values=cache, max_new_tokens=9, do_sample=False)
    logits = logits_in_pieces(model, generated, [0, 16], twin)
    assert torch.equal(logits[:, 6:-1].argmax(-1), generated[:, 7:])
    assert not torch.equal(generated, model.generate(prompt, max_new_tokens=9, do_sample=False))


def test_sequences_can_be_selected_and_repeated() -> None:
    model, ids = small_model(memory="shared"), token_ids(2, 20)
    cache = model.new_cache()
    logits_in_pieces(model, ids, [0, 20], cache)
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 2, 1, 0]))
    cache.batch_select_indices(torch.tensor([0, 1]))
    waiting = cache.memory[1].state.pending
    assert waiting.queries.shape[0] == 2 and torch.equal(waiting.queries[0], waiting.queries[1])


def test_hidden_states_and_tuples() -> None:
    model, ids = small_model(), token_ids(1, 12)
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        logits = model(ids, return_dict=False)[0]
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, out.logits[:, -2:], rtol=1e-12, atol=1e-12)
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    assert len(out.hidden_states) == 3 and torch.equal(logits, out.logits) and torch.equal(embedded, logits)
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
    model.config.return_dict = False
    with torch.no_grad():
        assert torch.equal(model(ids)[0], logits) and torch.equal(model(ids, return_dict=True).logits, logits)


def test_refusals() -> None:
    model, ids = small_model(), token_ids(1, 12)
    with pytest.raises(ValueError, match="past_key_values is a DynamicCache.*new_cache"):
        model(ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="cache belongs to a model whose code was loaded from another folder"):
        model(ids, cache=type("FwPKMCache", (), {})())
    with pytest.raises(ValueError, match="num_beams=2: beam search would write every hypothesis"):
        model.generate(ids, num_beams=2, max_new_tokens=2, memory="shared")
    with pytest.raises(ValueError, match="cache_implementation='static' cannot hold the memory"):
        model.generate(ids, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="cannot be cropped"):
        model.new_cache().crop(-1)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 5\), expected \[1, 12\]"):
        model(ids, attention_mask=torch.zeros(1, 5))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    model.memory_mode = "frozen"
    assert model.generate(ids, num_beams=2, max_new_tokens=2, do_sample=False).shape == (1, 14)


def test_a_trained_model_is_extended_by_yarn_where_it_is_loaded(tmp_path: Path) -> None:
    model, ids = small_model(fwpkm_layers=[], training_length=16), token_ids(1, 40)
    model.save_pretrained(tmp_path)
    stretched = FwPKMForCausalLM.from_pretrained(tmp_path, yarn_factor=4.0, dtype=torch.float64)
    assert stretched.config.yarn_factor == 4.0
    with torch.no_grad():
        far, plain = stretched(ids).logits, model(ids).logits
    assert torch.equal(far[:, 0], plain[:, 0]) and not torch.allclose(far[:, -1], plain[:, -1], atol=1e-4)
