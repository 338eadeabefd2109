"""Texts on one cache: documents that are read, questions that follow, texts that go on; what a cache keeps alive."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.hf.rows import fingerprint
from megatron_fwpkm.ops import MemoryOptions

from .builders import layer_memory, memory_inputs, small_model, token_ids
from .test_calls import endless

ADVICE = r"pass the whole text, or call cache\.end_text\(\) first"


@pytest.mark.parametrize("tokens", [6, 9, 3])
def test_a_second_question_is_read_whole_or_refused(tokens: int) -> None:
    """Transformers would read what is beyond the length of the cache: 6 tokens given, 3 read."""
    model, document, question = endless(), token_ids(1, 40, seed=1), token_ids(1, tokens, seed=2)
    for mode in ("on", "frozen"):
        cache = model.read(document)
        twin = cache.clone()
        model.memory_mode = mode
        first = model.generate(token_ids(1, 3, seed=3), cache=cache, max_new_tokens=7, do_sample=False)
        assert cache.get_seq_length() == 9
        with pytest.raises(ValueError, match=f"length {tokens}, but the cache has read a text of length 9; {ADVICE}"):
            model.generate(question, cache=cache, max_new_tokens=2)
        with pytest.raises(ValueError, match=ADVICE):
            model.generate(question, attention_mask=torch.ones_like(question), past_key_values=cache)
        embedded = model.get_input_embeddings()(question)
        with pytest.raises(ValueError, match=ADVICE):
            model.generate(inputs_embeds=embedded, past_key_values=cache)
        cache.end_text()
        twin_first = model.generate(token_ids(1, 3, seed=3), cache=twin, max_new_tokens=7, do_sample=False)
        assert torch.equal(twin_first, first)
        twin.end_text()
        found = model.generate(question, cache=cache, max_new_tokens=8, do_sample=False)
        with torch.no_grad():
            logits = model(found[:, :-1], cache=twin).logits[:, tokens - 1 :]
        assert torch.equal(logits.argmax(-1), found[:, tokens:])
        model.memory_mode = "on"


@pytest.mark.parametrize("layout", [{}, {"attention_windows": None}])
def test_a_conversation_goes_on_when_it_is_passed_whole(layout: dict[str, object]) -> None:
    model = endless(**layout)
    cache = model.new_cache()
    turns = model.generate(token_ids(1, 12), cache=cache, max_new_tokens=9, do_sample=False)
    longer = torch.cat([turns, token_ids(1, 5, seed=4)], 1)
    edited = longer.clone()
    edited[0, 2] += 1
    other = token_ids(1, 26, seed=5)
    for wrong in (edited, other):
        with pytest.raises(ValueError, match=f"does not begin with the 20 tokens that the cache has read; {ADVICE}"):
            model.generate(wrong, cache=cache.clone(), max_new_tokens=2)
    expected = model.generate(longer, max_new_tokens=9, do_sample=False)
    pads = torch.full((1, 4), 7)
    assert torch.equal(model.generate(longer, cache=cache.clone(), max_new_tokens=9, do_sample=False), expected)
    mask = torch.ones(1, 26)
    twin = cache.clone()
    only_new = model.generate(longer[:, 20:], attention_mask=mask, cache=twin, max_new_tokens=9, do_sample=False)
    assert torch.equal(only_new[:, 6:], expected[:, 26:])
    # The same with padding before the text.
    cache, mask = model.new_cache(), torch.cat([torch.zeros(1, 4), torch.ones(1, 26)], 1)
    given = torch.cat([pads, longer], 1)
    model.generate(given[:, :16], attention_mask=mask[:, :16], cache=cache, max_new_tokens=9, do_sample=False)
    found = model.generate(given, attention_mask=mask, cache=cache, max_new_tokens=9, do_sample=False)
    assert torch.equal(found[:, 30:], expected[:, 26:])


def test_fingerprints_know_every_token_and_no_cut() -> None:
    ids, counts = token_ids(2, 30), (30, 17)
    whole = fingerprint(ids, counts)
    cut = fingerprint(ids[:, 9:], (21, 8), fingerprint(ids[:, :9], (9, 9)))
    assert torch.equal(whole, cut)
    assert torch.equal(whole[1:], fingerprint(ids[1:, :17], (17,)))
    one_by_one = None
    for place in range(30):
        one_by_one = fingerprint(ids[:1, place : place + 1], (1,), one_by_one)
    assert torch.equal(one_by_one, whole[:1])
    for place in range(17):
        changed = ids.clone()
        changed[:, place] += 1
        assert (fingerprint(changed, counts) != whole).all()
    swapped = ids.clone()
    swapped[:, [3, 4]] = ids[:, [4, 3]]
    assert (fingerprint(swapped, counts) != whole).all()


def test_reading_keeps_no_graph_and_ends_the_text() -> None:
    """With gradients enabled, as in a user's session; what is remembered is what a call without gradients writes."""
    model, document, question = small_model(), token_ids(1, 45, seed=1), token_ids(1, 7, seed=2)
    by_hand = model.new_cache()
    with torch.no_grad():
        model(document, cache=by_hand)
        by_hand.end_text()
    graphs: list[bool] = []
    model.model.norm.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    assert torch.is_grad_enabled()
    cache = model.read(document)
    assert graphs == [False]
    found, by_hand_state = cache.memory[1].state, by_hand.memory[1].state
    tables = (found.whole_values(), by_hand_state.whole_values()), (found.sub_keys, by_hand_state.sub_keys)
    for table, expected in tables:
        assert torch.equal(table, expected) and not table.requires_grad and table.grad_fn is None
    assert cache.get_seq_length() == 0 and found.num_pending == 0
    with torch.no_grad():
        assert torch.equal(model(question, cache=cache.clone()).logits, model(question, cache=by_hand).logits)
    assert model.read(token_ids(1, 20), cache) is cache
    assert not torch.equal(cache.memory[1].state.whole_values(), by_hand_state.whole_values())
    model.memory_mode = "frozen"
    with pytest.raises(ValueError, match="memory mode 'frozen' writes nothing, so the document would not be"):
        model.read(document)


@pytest.mark.parametrize("lookahead", [0, 2])
def test_waiting_tokens_keep_no_long_call_alive(lookahead: int) -> None:
    """They own their storage, and no more than they need; without lookahead they are a plain slice of the call."""
    options = MemoryOptions(topk=3, chunk_size=8, lookahead=lookahead, boundary="carry")
    tokens, sub_keys, values = memory_inputs(options, masked=True, tokens=299 + lookahead)
    stream = layer_memory(sub_keys, values, options)

    def check() -> None:
        pending = stream.state.pending
        assert pending is not None
        for tensor in (pending.queries, pending.targets, pending.gates, pending.mask):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()

    with torch.no_grad():
        tokens.into(stream)
        assert stream.state.num_pending == 3 + lookahead
        check()
        stream.flush()
        tokens.cut(0, 3).into(stream)
        assert stream.state.num_pending == 3 + lookahead
        check()


def test_flushing_and_ending_keep_no_graph() -> None:
    """Also when they are called with gradients enabled, after calls with or without them."""
    for ended in (False, True):
        model, ids = small_model(), token_ids(1, 21)
        cache, twin = model.new_cache(), model.new_cache()
        with torch.no_grad():
            for text in (cache, twin):
                model(ids, cache=text)
        assert torch.is_grad_enabled()
        before = cache.memory[1].state.overlay
        assert cache.memory[1].owners[0]._owned
        (cache.end_text if ended else cache.flush_memory)()
        with torch.no_grad():
            twin.flush_memory()
        written = cache.memory[1].state
        assert written.overlay is before, "written in place, not replaced as autograd needs it"
        assert torch.equal(written.whole_values(), twin.memory[1].state.whole_values())
        assert written.table.grad_fn is None and not written.table.requires_grad
        assert written.sub_keys.grad_fn is None and not written.sub_keys.requires_grad
        model(ids, cache=cache if ended else twin)
