"""Batches and padding: padding changes nothing, and sequences share a memory only where that is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, pipeline

from megatron_fwpkm.hf import FwPKMForCausalLM, modeling_fwpkm
from tests.tools.test_generate_text import words

from .builders import small_model, token_ids
from .test_calls import endless, greedy

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"attention_windows": None, "fwpkm_layers": [0, 1], "fwpkm_num_heads": 2},
    {"attention_windows": [1, None], "fwpkm_lookahead": 0, "tie_word_embeddings": False},
]
SIDES = ["left", "right", "both", "within"]


def padded(ids: Tensor, side: str, pads: int = 21) -> tuple[Tensor, Tensor]:
    """A row [1, T] with padding tokens of id 7, and its mask."""
    left = {"left": pads, "right": 0, "both": pads // 2, "within": 0}[side]
    places = torch.arange(left, left + ids.shape[1])
    if side == "within":
        places[4:] += pads
    row, mask = torch.full((1, ids.shape[1] + pads), 7), torch.zeros(1, ids.shape[1] + pads, dtype=torch.long)
    row[:, places], mask[:, places] = ids, 1
    return row, mask


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", SIDES)
def test_a_padded_text_is_the_text(layout: dict[str, Any], side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states, greedy text and memory, bit for bit, with more padding than a chunk has tokens."""
    model, ids = endless(**layout), token_ids(1, 29)
    row, mask = padded(ids, side)
    for use_cache in (True, False):
        with torch.no_grad():
            plain = model.model(ids, use_cache=use_cache).last_hidden_state
            out = model.model(row, attention_mask=mask, use_cache=use_cache).last_hidden_state
            last = model(row, attention_mask=mask, use_cache=use_cache, logits_to_keep=1).logits
            expected = model(ids, use_cache=use_cache).logits[:, -1:]
        assert torch.equal(out[:, mask[0] > 0], plain)
        torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = model.new_cache(), model.new_cache()
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, cache=theirs)[:, 29:]
    found = model.generate(row, attention_mask=mask, max_new_tokens=12, do_sample=False, cache=ours)[:, 50:]
    assert torch.equal(found, expected)
    for index, stream in ours.memory.items():
        assert torch.equal(stream.state.whole_values(), theirs.memory[index].state.whole_values())
        assert stream.state.num_pending == theirs.memory[index].state.num_pending
    monkeypatch.setattr(modeling_fwpkm, "PREFILL_SEGMENT", 7)
    with torch.no_grad():
        again = model(row, attention_mask=mask).logits[:, mask[0] > 0]
        torch.testing.assert_close(again, model(ids).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whole_mask", [True, False])
def test_padding_in_every_call_of_a_stream(whole_mask: bool) -> None:
    """The mask may cover the past, or the call alone; a call may be padding only."""
    model, ids = small_model(), token_ids(1, 40)
    calls = [padded(ids[:, :13], "left", 3), padded(ids[:, 13:20], "right", 9), padded(ids[:, :0], "left", 2),
             padded(ids[:, 20:], "both", 4)]  # fmt: skip
    cache, masks, found = model.new_cache(), [], []
    with torch.no_grad():
        for row, mask in calls:
            masks.append(mask)
            given = torch.cat(masks, 1) if whole_mask else mask
            found.append(model(row, attention_mask=given, cache=cache).logits[:, mask[0] > 0])
        torch.testing.assert_close(torch.cat(found, 1), model(ids).logits, rtol=1e-12, atol=1e-12)
    assert cache.get_seq_length() == 58 and cache.text.lengths == (40,)
    with pytest.raises(ValueError, match=r"covers \[58\] tokens of the past, but the cache has read \[40\]"):
        model(ids, attention_mask=torch.ones(1, 98), cache=cache)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["frozen", "off"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_row_of_a_padded_batch_is_as_alone(layout: dict[str, Any], mode: str, side: str) -> None:
    """Where nothing is written: several calls, rows of different lengths in each, then greedy text."""
    model = endless(**layout)
    document = token_ids(1, 40, seed=9)
    memory = model.read(document)
    model.memory_mode = mode
    lengths = [(17, 3, 9), (2, 12, 0), (1, 1, 1)]
    rows = token_ids(3, 40)
    caches = [memory.clone() for _ in range(3)]
    batch, begin, masks = memory.clone(), [0, 0, 0], []
    with torch.no_grad():
        for counts in lengths:
            parts = [rows[b : b + 1, begin[b] : begin[b] + n] for b, n in enumerate(counts)]
            made = [padded(part, side, max(counts) - n) for part, n in zip(parts, counts, strict=True)]
            masks.append(torch.cat([mask for _, mask in made]))
            given = {} if masks[-1].all() else {"attention_mask": masks[-1]}
            logits = model(torch.cat([row for row, _ in made]), cache=batch, **given).logits
            for b, part in enumerate(parts):
                if part.numel():
                    alone = model(part, cache=caches[b]).logits[0]
                    torch.testing.assert_close(logits[b, masks[-1][b] > 0], alone, rtol=1e-10, atol=1e-10)
                begin[b] += part.shape[1]
    assert batch.text.lengths == (20, 16, 10)
    made = [padded(rows[b : b + 1, : 5 + 4 * b], side, 8 - 4 * b) for b in range(3)]
    ids, mask = (torch.cat(tensors) for tensors in zip(*made, strict=True))
    together = model.generate(ids, attention_mask=mask, cache=memory.clone(), max_new_tokens=9, do_sample=False)
    for b in range(3):
        alone = model.generate(rows[b : b + 1, : 5 + 4 * b], cache=memory.clone(), max_new_tokens=9, do_sample=False)
        assert torch.equal(together[b, 13:], alone[0, 5 + 4 * b :])


def test_padding_has_no_loss() -> None:
    model, ids = small_model(), token_ids(1, 20)
    model.train()
    plain = model(ids, labels=ids).loss
    for side in SIDES:
        row, mask = padded(ids, side)
        assert model(row, attention_mask=mask, labels=row).loss.item() == pytest.approx(plain.item(), rel=1e-6)


def test_a_batch_shares_a_memory_only_where_asked() -> None:
    """By the call, the configuration, the generation configuration; in training, too."""
    model, ids = endless(), token_ids(2, 20)
    with torch.no_grad():
        alone = torch.cat([model(row[None]).logits for row in ids])
        shared = model(ids, memory="shared").logits
        torch.testing.assert_close(model(ids).logits, alone, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(ids, memory="per-sequence").logits, alone, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(alone, shared)
        for cache in (model.new_cache(memory="shared"), model.new_cache(2, "shared")):
            assert torch.equal(model(ids, cache=cache).logits, shared)
            with pytest.raises(ValueError, match="memory='per-sequence', but the memory of the cache is 'shared'"):
                model(ids, cache=cache, memory="per-sequence")
        text = model.generate(ids, memory="shared", max_new_tokens=3, do_sample=False)
        asked = GenerationConfig(memory="shared", max_new_tokens=3, do_sample=False)
        assert torch.equal(model.generate(ids, asked), text)
        assert torch.equal(model.generate(ids, generation_config=asked), text)
        model.generation_config.memory = "shared"
        assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False), text)
    model.train()
    one_by_one = torch.stack([model(row[None], labels=row[None]).loss for row in ids]).mean()
    torch.testing.assert_close(model(ids, labels=ids).loss, one_by_one, rtol=1e-6, atol=0)
    model.config.memory = "shared"
    assert not torch.allclose(model(ids, labels=ids).loss, one_by_one, rtol=1e-6)
    for call in (model, model.generate, model.read):
        with pytest.raises(ValueError, match="memory='mine' is not known; choose one of: per-sequence, shared, on"):
            call(ids, memory="mine")
    model.config.memory = "ours"
    with pytest.raises(ValueError, match="memory='ours' is not known"):
        model(ids)


def test_rows_do_not_read_each_other() -> None:
    model, ids = endless(), token_ids(2, 20)
    for mode in ("on", "frozen", "off"):
        with torch.no_grad():
            out = model(ids, memory=mode).logits
            torch.testing.assert_close(out[1:], model(ids[1:], memory=mode).logits, rtol=1e-12, atol=1e-12)
        sampled = model.generate(ids[:1], do_sample=True, num_return_sequences=2, max_new_tokens=2, memory=mode)
        assert sampled.shape == (2, 22)
    assert small_model(fwpkm_layers=[])(ids).logits.shape == (2, 20, 64)


def test_what_a_shared_memory_cannot_do_is_refused() -> None:
    model, ids = small_model(memory="shared"), token_ids(2, 20)
    mask = torch.ones(2, 20)
    mask[1, :3] = 0
    message = "the rows of this batch have 17 to 20 tokens without padding, but rows that share a memory"
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=message):
            call(ids, attention_mask=mask, **({} if call is model else {"min_new_tokens": 20}))
    mask[0, 4:7] = 0
    with torch.no_grad():  # as many tokens in every row
        out = model(ids, attention_mask=mask).logits
        plain = model(torch.stack([row[kept > 0] for row, kept in zip(ids, mask, strict=True)])).logits
    for b in range(2):
        torch.testing.assert_close(out[b, mask[b] > 0], plain[b], rtol=1e-12, atol=1e-12)
    model.generation_config.eos_token_id = 2
    for ending in ({}, {"eos_token_id": None, "stop_strings": "x"}):
        with pytest.raises(ValueError, match="2 sequences that share a memory must end together"):
            model.generate(ids, max_new_tokens=5, **ending)
    assert model.generate(ids, max_new_tokens=5, min_new_tokens=5).shape == (2, 25)


def test_another_number_of_sequences_on_one_cache() -> None:
    model, ids = small_model(memory="shared"), token_ids(3, 20)
    for mode in ("on", "frozen"):
        model.memory_mode = mode
        cache = model.new_cache()
        with torch.no_grad():
            model(ids[:2], cache=cache)
            for rows in (1, 3):
                with pytest.raises(ValueError, match=f"batch size {rows}, but the text in the cache has 2; .*end_text"):
                    model(ids[:rows], cache=cache)
            cache.end_text()
            model(ids[:1], cache=cache)


def test_a_model_for_training_is_asked_once(tmp_path) -> None:
    model = small_model(dtype=torch.float32, memory="shared")
    model.save_pretrained(tmp_path)
    assert FwPKMForCausalLM.from_pretrained(tmp_path).config.memory == "shared"


def test_pipelines_read_rows_apart() -> None:
    tokenizer = words()
    tokenizer.pad_token, tokenizer.padding_side = "w00", "left"
    model = endless(dtype=torch.float32)
    asked = {"max_new_tokens": 12, "do_sample": False, "return_tensors": True, "eos_token_id": None, "pad_token_id": 0}
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    prompts = ["w05 w06 w07 w08 w09", "w11 w12", "w20 w21 w22"]
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert write(prompt, **asked)[0]["generated_token_ids"] == greedy(model, ids, 12)[0].tolist()
    for mode in ("on", "frozen"):
        model.memory_mode = mode
        for size in (2, 3):
            together = [row[0]["generated_token_ids"][-12:] for row in write(prompts, batch_size=size, **asked)]
            assert together == [write(prompt, **asked)[0]["generated_token_ids"][-12:] for prompt in prompts]
