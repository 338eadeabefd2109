"""Every sequence of a batch has a memory of its own: the same tokens as alone, whatever its neighbours, in every way
of generating; and such memories are forked, joined, split, taken back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.hf import FwPKMForCausalLM
from tests.hf.builders import small_model, token_ids

LENGTHS = (31, 9, 22)
KINDS: list[dict[str, Any]] = [
    {},
    {"attention_windows": [None, 4], "fwpkm_layers": [0, 1]},
    {"fwpkm_layers": [], "fwmlp_layers": [1], "fwmlp_hidden_size": 8, "fwmlp_chunk_size": 8, "fwmlp_key_dim": 8,
     "fwmlp_value_dim": 12},
]  # fmt: skip


def batch_of(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows padded on the left to one length, and their mask."""
    longest = max(row.shape[1] for row in rows)
    ids, mask = torch.full((len(rows), longest), 5), torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, longest - row.shape[1] :], mask[number, longest - row.shape[1] :] = row[0], 1
    return ids, mask


def texts() -> list[Tensor]:
    return [token_ids(1, length, seed) for seed, length in enumerate(LENGTHS)]


def generated(model: FwPKMForCausalLM, rows: list[Tensor], **options: Any) -> list[list[int]]:
    """New tokens of every row."""
    ids, mask = batch_of(rows)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=25, do_sample=False, **options)
    return [row[ids.shape[1] :].tolist() for row in out]


@pytest.mark.parametrize("layout", KINDS, ids=["windows", "two memories", "fast mlp"])
def test_a_sequence_has_the_same_tokens_as_alone(layout: dict[str, Any]) -> None:
    model = small_model(3, eos_token_id=None, **layout)
    rows = texts()
    alone = [generated(model, [row])[0] for row in rows]
    assert generated(model, rows) == alone
    assert generated(model, [rows[2], rows[0]]) == [alone[2], alone[0]]


def test_sequences_may_end_apart() -> None:
    model = small_model(3)
    rows = texts()
    alone = [generated(model, [row])[0] for row in rows]
    stop = alone[0][3]  # the first row ends here, the others go on
    for row, tokens in zip(generated(model, rows, eos_token_id=stop, pad_token_id=0), alone, strict=True):
        end = tokens.index(stop) + 1 if stop in tokens else len(tokens)
        assert row[:end] == tokens[:end] and not any(row[end:])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_are_those_of_the_whole_text(options: dict[str, Any]) -> None:
    """With a cache, whose memories follow the beams, and without one, where every step reads the whole text."""
    model, ids = small_model(3, fwpkm_boundary="carry", eos_token_id=None), token_ids(2, 19)
    asked = {"max_new_tokens": 11, "do_sample": False, **options}
    expected = model.generate(ids, use_cache=False, **asked)
    assert torch.equal(model.generate(ids, **asked), expected)


def test_sampled_groups_are_repeated_prompts() -> None:
    model, ids = small_model(3, eos_token_id=None), token_ids(2, 19)
    torch.manual_seed(5)
    grouped = model.generate(ids, max_new_tokens=12, do_sample=True, num_return_sequences=3)
    torch.manual_seed(5)
    repeated = model.generate(ids.repeat_interleave(3, 0), max_new_tokens=12, do_sample=True)
    assert torch.equal(grouped, repeated) and len({tuple(row.tolist()) for row in grouped}) > 2


DELTA_NET = {"token_mixers": ["gdn", "swa"], "attention_windows": [None, 6]}


@pytest.mark.parametrize("layout", [KINDS[0], pytest.param(DELTA_NET, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["prompt lookup", "assistant"])
def test_assisted_decoding_is_greedy_decoding(kind: str, layout: dict[str, Any]) -> None:
    model = small_model(3, eos_token_id=None, **layout)
    ids = token_ids(1, 12).repeat(1, 3)  # with something to look up
    assisted: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
    if kind == "assistant":
        draft = small_model(3, eos_token_id=None, **layout)
        with torch.no_grad():
            draft.lm_head.weight.add_(0.2 * torch.randn_like(draft.lm_head.weight))
        assisted = {"assistant_model": draft}
    ours, theirs = model.new_cache(), model.new_cache()
    expected = model.generate(ids, max_new_tokens=40, do_sample=False, cache=theirs)
    found = model.generate(ids, max_new_tokens=40, do_sample=False, cache=ours, **assisted)
    assert torch.equal(found, expected)
    # Assisted decoding may have read the last token too, or one less: both go on alike.
    rest = expected[:, ours.get_seq_length() :], expected[:, theirs.get_seq_length() :]
    more = token_ids(1, 20, seed=9)
    with torch.no_grad():
        after = [
            model(torch.cat([left, more], 1), cache=cache).logits[:, -20:]
            for left, cache in zip(rest, (ours, theirs), strict=True)
        ]
    torch.testing.assert_close(*after, rtol=1e-10, atol=1e-10)


def test_a_text_is_taken_back_and_goes_on_otherwise() -> None:
    model, ids = small_model(), token_ids(1, 60)
    cache, plain = model.new_cache(), model.new_cache()
    cache.activate_past_recording()
    with torch.no_grad():
        for cut in (slice(0, 20), slice(20, 31), slice(31, 45)):
            model(ids[:, cut], cache=cache)
        cache.crop(-20)  # within the second call
        assert cache.get_seq_length() == 25
        cache.crop(-2)
        with pytest.raises(ValueError, match="3 tokens that crop\\(\\) left of a call have not been read again"):
            cache.flush_memory()
        other = token_ids(1, 30, seed=4)
        found = model(other, cache=cache, attention_mask=torch.ones(1, 53)).logits
        expected = model(torch.cat([ids[:, :23], other], 1), cache=plain).logits[:, 23:]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        cache.crop(23)  # as in earlier releases: the length that stays
        again = model(inputs_embeds=model.model.embed_tokens(other), cache=cache).logits
        torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="cannot be cropped to 0 tokens: .*activate_past_recording"):
        plain.crop(-53)


def test_a_document_is_read_once_and_forked() -> None:
    model, document = small_model(3, eos_token_id=None), token_ids(1, 50)
    read = model.read(document)
    before = read.memory[1].state.whole_values()
    asked = [token_ids(1, 7, seed) for seed in range(3)]
    alone = [model.generate(ids, cache=read.clone(), max_new_tokens=9, do_sample=False)[0, 7:] for ids in asked]
    with pytest.raises(ValueError, match="batch size 3, but the cache holds one memory; use cache.fork\\(3\\)"):
        model.generate(torch.cat(asked), cache=read, max_new_tokens=9)
    forked = read.fork(3)
    assert forked.batch_size == 3
    together = model.generate(torch.cat(asked), cache=forked, max_new_tokens=9, do_sample=False)
    assert torch.equal(together[:, 7:], torch.stack(alone))
    assert torch.equal(read.memory[1].state.whole_values(), before)
    frozen = model.generate(torch.cat(asked), cache=read.clone(), max_new_tokens=9, do_sample=False, memory="frozen")
    assert frozen.shape == (3, 16)
    for number in (0, -1):
        with pytest.raises(ValueError, match="number of copies must be at least 1"):
            read.fork(number)


def test_caches_are_joined_and_split() -> None:
    model = small_model(3, eos_token_id=None)
    documents, asked = texts(), [token_ids(1, 5 + seed, seed) for seed in range(3)]
    apart = [model.read(document) for document in documents]
    alone = [
        model.generate(ids, cache=one.clone(), max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
        for ids, one in zip(asked, apart, strict=True)
    ]
    joined = type(apart[0]).join(apart)
    ids, mask = batch_of(asked)
    out = model.generate(ids, attention_mask=mask, cache=joined, max_new_tokens=20, do_sample=False)
    assert [row[ids.shape[1] :].tolist() for row in out] == alone
    with pytest.raises(ValueError, match="it has a text; call end_text"):
        type(joined).join([joined])
    parts = joined.split()
    with torch.no_grad():
        for row, part in enumerate(parts):
            one = apart[row]
            expected = model.read(documents[row])
            text = torch.cat([asked[row], torch.tensor([alone[row]])], 1)
            expected = model(text, cache=expected).logits[:, -1]
            found = model(text[:, -1:], cache=part).logits[:, -1]
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            assert part.batch_size == 1 and one is not part


def test_what_a_cache_takes() -> None:
    model, ids = small_model(), token_ids(3, 20)
    with torch.no_grad():
        cache = model.new_cache(batch_size=3)
        model(ids, cache=cache)
    with pytest.raises(ValueError, match="but the text in the cache has 3"):
        model(ids[:2], cache=cache)
    cache.end_text()
    with pytest.raises(ValueError, match="holds 3 memories, one for each sequence"):
        model(ids[:2], cache=cache)
    for number in (0, -2):
        with pytest.raises(ValueError, match=f"batch_size={number} must be at least 1"):
            model.new_cache(number)
    with pytest.raises(ValueError, match="memory='frozen' is not known; choose one of: per-sequence, shared"):
        model.new_cache(memory="frozen")
    shared = model.new_cache(memory="shared")
    for use in (lambda: shared.fork(2), shared.split, lambda: type(shared).join([shared])):
        with pytest.raises(ValueError, match="shared"):
            use()
    with pytest.raises(ValueError, match="at least one cache"):
        type(shared).join([])
    with pytest.raises(ValueError, match="caches of different models cannot be joined"):
        type(shared).join([model.new_cache(), small_model().new_cache()])


def test_inference_mode_may_end_within_a_text() -> None:
    model, ids = small_model(), token_ids(2, 60)
    cache, plain = model.new_cache(), model.new_cache()
    with torch.inference_mode():
        model(ids[:, :43], cache=cache)
    with torch.no_grad():
        model(ids[:, :43], cache=plain)
        assert torch.equal(model(ids[:, 43:], cache=cache).logits, model(ids[:, 43:], cache=plain).logits)


@pytest.mark.parametrize("layout", KINDS, ids=["windows", "two memories", "fast mlp"])
def test_training_reads_every_sequence_alone(layout: dict[str, Any]) -> None:
    """Losses, gradients, ragged rows; without a cache."""
    model = small_model(3, **layout).train()
    rows = texts()
    expected = torch.autograd.grad(sum(model(row, labels=row).loss * (row.shape[1] - 1) for row in rows),
                                   list(model.parameters()), allow_unused=True)  # fmt: skip
    ids, mask = batch_of(rows)
    loss = model(ids, attention_mask=mask, labels=ids).loss * sum(length - 1 for length in LENGTHS)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)


def test_an_export_from_before_there_was_a_choice() -> None:
    assert small_model(memory=None).new_cache().owner == "per-sequence"


def test_continuous_batching_is_refused() -> None:
    with pytest.raises(ValueError, match="pages of attention alone.*cache.join"):
        small_model().generate_batch([[3, 4, 5]])
