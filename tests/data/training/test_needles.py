"""Facts: drawn reproducibly, one token per word, the value right where the answer slice says."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from megatron_fwpkm.config import DataConfig, NeedleConfig
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer
from megatron_fwpkm.data.training.needles import NUM_VALUE_WORDS, Fact, NeedleSpec


@pytest.fixture
def spec(tokenizer: Tokenizer) -> NeedleSpec:
    return NeedleSpec.from_config(NeedleConfig(), tokenizer)


def test_words_of_keys_and_values_are_apart(spec: NeedleSpec, tokenizer: Tokenizer) -> None:
    words = tokenizer.whole_words()
    assert spec.value_vocabulary == tuple(words[:NUM_VALUE_WORDS])
    assert spec.key_vocabulary == tuple(words[NUM_VALUE_WORDS:])
    for fact in spec.draw(np.random.default_rng(3), 40):
        assert set(fact.key.split()) <= set(spec.key_vocabulary) and len(set(fact.key.split())) == 2
        assert set(fact.value.split()) <= set(spec.value_vocabulary) and len(fact.value.split()) == 3


def test_drawing_is_reproducible_and_keys_differ(spec: NeedleSpec) -> None:
    first, again, other = (spec.draw(np.random.default_rng(seed), 60) for seed in (5, 5, 6))
    assert first == again != other
    assert len({fact.key for fact in first}) == 60


def test_the_answer_slice_holds_the_value(spec: NeedleSpec, tokenizer: Tokenizer) -> None:
    for fact in spec.draw(np.random.default_rng(1), 50):
        encoded = spec.encode_fact(fact)
        assert tokenizer.decode(encoded.tokens) == f"The code {fact.key} {fact.value}."
        assert tokenizer.decode(encoded.answer_tokens) == fact.value
        assert tokenizer.decode(encoded.question) == f"The code {fact.key}"
        assert len(encoded.answer_tokens) == 3


def test_every_key_can_be_drawn(tokenizer: Tokenizer) -> None:
    spec = NeedleSpec.from_config(NeedleConfig(key_words=1), tokenizer)
    count = len(spec.key_vocabulary)
    assert {fact.key for fact in spec.draw(np.random.default_rng(0), count)} == set(spec.key_vocabulary)
    with pytest.raises(ValueError, match=f"{count + 1} facts need as many .*, but this tokenizer has {count};"):
        spec.draw(np.random.default_rng(0), count + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "The code {key}."}, r"must contain \{value\} exactly once"),
        ({"template": "The code {value}."}, r"must contain \{key\} exactly once"),
        ({"template": "{key} {key} {value}"}, r"must contain \{key\} exactly once"),
        ({"template": "{value} is {key}"}, r"must have \{value\} after \{key\}"),
        ({"template": "The code {key}{value}."}, "are not one piece each"),
        ({"key_words": 0}, "--needle-key-words 0 must be at least 1"),
        ({"value_words": 0}, "--needle-value-words 0 must be at least 1"),
    ],
)
def test_wrong_needles_are_refused(tokenizer: Tokenizer, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeedleSpec.from_config(dataclasses.replace(NeedleConfig(), **changes), tokenizer)


def test_too_few_whole_words_are_refused() -> None:
    null = build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=40))
    with pytest.raises(ValueError, match="has 40 lower-case words.* need at least 48"):
        NeedleSpec.from_config(NeedleConfig(template="{key} {value}"), null)


def test_words_that_are_several_pieces_are_refused(spec: NeedleSpec) -> None:
    with pytest.raises(ValueError, match="'uncopyrightable' are not one piece each"):
        spec.encode_fact(Fact("that", "uncopyrightable"))


def test_facts_of_numbers() -> None:
    null = build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=100))
    spec = NeedleSpec.from_config(NeedleConfig(template="7 {key} {value}"), null)
    assert spec.encode_fact(Fact("40 50", "1 2 3")).tokens == (7, 40, 50, 1, 2, 3)


def test_constant_words_before_the_value_are_warned_of(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        NeedleSpec.from_config(NeedleConfig(template="The code of {key} is {value}."), tokenizer)
    assert "has 'is' between {key} and {value}" in caplog.text
