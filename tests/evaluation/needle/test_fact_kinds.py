"""Kinds of facts: what they look like, where their answers stand, and which are easily confused."""

from __future__ import annotations

import re
import uuid

import numpy as np
import pytest

from megatron_fwpkm.config import DataConfig, NeedleConfig
from megatron_fwpkm.data.tokenizers import build_tokenizer
from megatron_fwpkm.data.training.needles import Fact
from megatron_fwpkm.evaluation.needle.fact_kinds import draw_distractors, fact_kind
from megatron_fwpkm.evaluation.needle.settings import NUMBER_TEMPLATE

NUMBERS = NeedleConfig(template=NUMBER_TEMPLATE)


def rng(seed: int = 0) -> np.random.Generator:
    """A generator of numbers."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", ["digits", "uuid"])
@pytest.mark.parametrize("tokens", ["pieces", "bytes"])
def test_numbers_and_uuids_are_cut_where_the_value_begins_and_ends(tokenizer, kind, tokens):
    """A space of its own before the value belongs to the question, so the first token of an answer says something."""
    if tokens == "bytes":
        tokenizer = build_tokenizer(DataConfig(tokenizer_type="ByteLevelTokenizer"))
    facts = fact_kind(kind, NUMBERS, tokenizer)
    drawn = facts.draw(rng(), 40)
    assert len({fact.key for fact in drawn}) == 40
    for fact in drawn:
        told = facts.encode_fact(fact)
        assert tokenizer.decode(told.answer_tokens).strip() == fact.value
        assert tokenizer.decode(told.question).rstrip() == f"The secret number for ID-{fact.key} is"
        if kind == "digits":
            assert tokenizer.decode(told.answer_tokens[:1]).strip(), "the first token is part of the value"
            assert re.fullmatch(r"\d{4}", fact.key) and re.fullmatch(r"\d{6,7}", fact.value)
        else:
            assert uuid.UUID(fact.key).version == uuid.UUID(fact.value).version == 4


def test_the_same_seed_gives_the_same_facts(tokenizer):
    facts = fact_kind("uuid", NUMBERS, tokenizer)
    assert facts.draw(rng(3), 5) == facts.draw(rng(3), 5) != facts.draw(rng(4), 5)


def test_chance_is_that_of_guessing_a_value(spec, tokenizer):
    assert (spec.chance_exact, spec.chance_token) == (32**-3, 1 / 32)
    digits = fact_kind("digits", NUMBERS, tokenizer)
    assert (1 / digits.chance_exact, digits.chance_token) == (pytest.approx(9_900_000), None)


@pytest.mark.parametrize("kind", ["words", "digits", "uuid"])
def test_distractors_share_the_key_or_the_value(tokenizer, kind):
    facts = fact_kind(kind, NeedleConfig() if kind == "words" else NUMBERS, tokenizer)
    drawn = facts.draw(rng(), 3)
    asked = drawn[0]
    near = draw_distractors(facts, rng(1), drawn, 6, "same-key")
    keys = {fact.key for fact in [*drawn, *near]}
    assert len(keys) == 9 and all(fact.value != asked.value for fact in near)
    begin = {"words": asked.key.split()[0] + " ", "digits": asked.key[:3], "uuid": asked.key[:24]}[kind]
    assert all(fact.key.startswith(begin) and len(fact.key.split()) == len(asked.key.split()) for fact in near)
    same = draw_distractors(facts, rng(1), drawn, 6, "same-value")
    assert all(fact.value == asked.value for fact in same) and len({fact.key for fact in [*drawn, *same]}) == 9


def test_more_distractors_than_keys_are_refused(tokenizer):
    facts = fact_kind("digits", NUMBERS, tokenizer)
    with pytest.raises(ValueError, match=r"--distractors 10 need as many keys like '\d{4}', but only 9 were found"):
        draw_distractors(facts, rng(), facts.draw(rng(), 1), 10, "same-key")
    with pytest.raises(ValueError, match="9001 facts need as many different keys, but there are 9000"):
        facts.draw(rng(), 9001)


def test_a_value_that_grows_together_with_the_text_is_refused(tokenizer):
    """The pieces of a sentence without spaces do not end where the value does."""
    facts = fact_kind("digits", NUMBERS, tokenizer)
    facts.template = "{key} is {value}."
    facts.tokenizer = type("Joined", (), {"encode": lambda self, text: [len(text)], "decode": lambda self, ids: "x"})()
    with pytest.raises(ValueError, match="this tokenizer joins the value with the text around it"):
        facts.encode_fact(Fact("1234", "567890"))
