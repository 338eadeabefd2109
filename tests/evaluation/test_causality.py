"""The self-test of causality: what passes it, and what fails it."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_fwpkm.evaluation.causality import check_causality
from megatron_fwpkm.evaluation.text_model import text_model
from tests.evaluation.oracle import OracleModel


def test_a_causal_model_passes_the_check(tiny_model, tokenizer):
    text = np.random.default_rng(0).integers(3, tokenizer.vocab_size, 150)
    check = check_causality(text_model(tiny_model), text, tokenizer.vocab_size)
    assert check.passed and check.changed == 75


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_short_text_is_checked_as_any_other(tiny_model, tokenizer, length):
    """A token must have one before it and one after it: a text of one or two is read more than once."""
    text = np.arange(5, 5 + length)
    assert check_causality(text_model(tiny_model), text, tokenizer.vocab_size).passed
    peeking = OracleModel(tokenizer.vocab_size, peeks=True)
    assert not check_causality(text_model(peeking), text, tokenizer.vocab_size).before_identical


@pytest.mark.parametrize("token", [0, 7, 408])
def test_the_changed_token_is_the_next_of_the_vocabulary(tokenizer, token):
    """Another token than before, and a token of the tokenizer, wherever in the vocabulary it stands."""
    rows = []

    class Recording(OracleModel):
        def __call__(self, input_ids, **arguments):
            rows.append(input_ids[0].tolist())
            return super().__call__(input_ids, **arguments)

    text = np.full(41, 5)
    text[20] = token
    check_causality(text_model(Recording(tokenizer.vocab_size)), text, 409)
    (first, second), changed = rows, (token + 1) % 409
    assert first == text.tolist() and second == [*first[:20], changed, *first[21:]]
    assert changed != token


def test_a_model_that_peeks_fails_the_check(tokenizer):
    text = np.random.default_rng(0).integers(3, tokenizer.vocab_size, 150)
    check = check_causality(text_model(OracleModel(tokenizer.vocab_size, peeks=True)), text, tokenizer.vocab_size)
    assert not check.before_identical and not check.passed


def test_a_check_that_sees_no_effect_does_not_pass(tokenizer):
    text = np.full(150, 5)
    text[:75] = np.arange(10, 85)
    check = check_causality(text_model(OracleModel(tokenizer.vocab_size, window=1)), text, tokenizer.vocab_size)
    assert check.before_identical and not check.after_differs and not check.passed
