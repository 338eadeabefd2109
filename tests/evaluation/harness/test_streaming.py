"""Log-likelihoods of whole documents: token by token, in any segments, with any neighbours."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.evaluation.harness.streaming import document_log_likelihoods
from tests.hf.builders import small_model, token_ids

PREFIX = 1
NO_LIMIT = 1 << 30


def documents(*lengths: int) -> list[list[int]]:
    """Random tokens of these lengths."""
    return [token_ids(1, max(length, 1), seed=length)[0, :length].tolist() for length in lengths]


@torch.no_grad()
def token_by_token(model, tokens: list[int], max_length: int = NO_LIMIT) -> float:
    """The sum of the logarithms of a document's probabilities, with one call per token."""
    cache, total, before = model.new_cache(), 0.0, PREFIX
    for place, token in enumerate(tokens):
        if place and place % max_length == 0:
            cache.end_text()
        logits = model(input_ids=torch.tensor([[before]]), cache=cache).logits[0, -1]
        total, before = total + float(logits.log_softmax(-1)[token]), token
    return total


@pytest.mark.parametrize("segment", [7, 1000])
def test_the_memory_goes_on_through_a_document_and_no_further(segment):
    model, texts = small_model(), documents(29, 0, 34, 1)
    found = document_log_likelihoods(model, texts, PREFIX, segment=segment, max_length=NO_LIMIT)
    expected = [token_by_token(model, text) for text in texts]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[1] == 0

    alone = [document_log_likelihoods(model, [text], PREFIX, segment=9, max_length=NO_LIMIT)[0] for text in texts]
    assert found == pytest.approx(alone, rel=1e-12)
    model.memory_mode = "off"
    without = document_log_likelihoods(model, texts, PREFIX, segment=segment, max_length=NO_LIMIT)
    assert abs(without[0] - found[0]) > 1e-3


def test_attention_begins_anew_after_the_longest_text_and_the_memory_goes_on():
    model, (text, other) = small_model(), documents(31, 14)
    found = document_log_likelihoods(model, [text, other], PREFIX, segment=7, max_length=12)
    assert found == pytest.approx([token_by_token(model, t, max_length=12) for t in (text, other)], rel=1e-12)
    assert abs(found[0] - token_by_token(model, text)) > 1e-3


def test_a_document_that_begins_with_the_prefix_is_not_given_it_again():
    model, (text,) = small_model(), documents(20)
    one, two = document_log_likelihoods(model, [text, [PREFIX, *text]], PREFIX, segment=50, max_length=NO_LIMIT)
    assert one == pytest.approx(two, rel=1e-12)
