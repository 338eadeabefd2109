"""Facts that a model has to remember: how they are drawn, worded and tokenized. Free of torch; training and evaluation
share it.

A fact is a key of whole words and a value of whole words. The first `NUM_VALUE_WORDS` whole-word pieces of the
tokenizer make values, the rest make keys, so every word is one token and nothing about a key gives its value away. In
the default template the value follows the key directly: constant tokens in between make all queries alike, and a small
model then never learns to tell facts apart.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Self

import numpy as np

from ...config import NeedleConfig
from ..tokenizers import Tokenizer

NUM_VALUE_WORDS = 32
"""Whole-word pieces that values are drawn from."""
MIN_KEY_WORDS = 16
"""Fewest whole-word pieces that must remain for keys."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fact:
    """One key and its value, both words separated by single spaces."""

    key: str
    value: str


@dataclass(frozen=True)
class EncodedFact:
    """Tokens of a fact's sentence; `tokens[answer]` are the value's, `tokens[: answer.start]` is the question."""

    tokens: tuple[int, ...]
    answer: slice

    @property
    def question(self) -> tuple[int, ...]:
        """Tokens of the sentence before the value: what to ask with."""
        return self.tokens[: self.answer.start]

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """Tokens of the value: what to expect."""
        return self.tokens[self.answer]


class NeedleSpec:
    """How facts are drawn and worded for one tokenizer. Make it with `from_config`."""

    def __init__(
        self, tokenizer: Tokenizer, template: str, vocabulary: list[str], *, key_words: int, value_words: int
    ) -> None:
        """`vocabulary`: whole words, values from the first NUM_VALUE_WORDS. Raises ValueError as `from_config` does."""
        check_template(template)
        _warn_of_words_between(template)
        for flag, count in (("--needle-key-words", key_words), ("--needle-value-words", value_words)):
            if count < 1:
                raise ValueError(f"{flag} {count} must be at least 1")
        needed = NUM_VALUE_WORDS + MIN_KEY_WORDS
        if len(vocabulary) < needed:
            raise ValueError(
                f"the tokenizer has {len(vocabulary)} lower-case words of four letters or more as single pieces, but "
                f"facts need at least {needed} ({NUM_VALUE_WORDS} for values, the rest for keys); train one with a "
                "larger --vocab-size"
            )
        self.tokenizer = tokenizer
        self.template = template
        self.value_vocabulary = tuple(vocabulary[:NUM_VALUE_WORDS])
        self.key_vocabulary = tuple(vocabulary[NUM_VALUE_WORDS:])
        self.key_words = key_words
        self.value_words = value_words

    @classmethod
    def from_config(cls, needle: NeedleConfig, tokenizer: Tokenizer) -> Self:
        """The facts that `--needle-*` describes.

        Raises:
            ValueError: a template without {key} or {value} or with the value first, word counts below 1, a tokenizer
                with too few whole-word pieces, or one in which the template's words do not stay single pieces.
        """
        spec = cls(
            tokenizer,
            needle.template,
            tokenizer.whole_words(),
            key_words=needle.key_words,
            value_words=needle.value_words,
        )
        spec.encode_fact(spec.draw(np.random.default_rng(0), 1)[0])
        return spec

    def draw(self, rng: np.random.Generator, count: int) -> list[Fact]:
        """`count` facts with different keys; words within a key differ, values are drawn freely.

        Raises:
            ValueError: more facts than keys exist.
        """
        available = self.number_of_keys()
        if count > available:
            raise ValueError(
                f"{count} facts need as many different keys, but this tokenizer has {available}; use fewer facts, or "
                "raise --needle-key-words"
            )
        facts: list[Fact] = []
        seen: set[str] = set()
        while len(facts) < count:
            key = " ".join(self._pick(rng, self.key_vocabulary, self.key_words))
            if key not in seen:
                seen.add(key)
                values = rng.integers(len(self.value_vocabulary), size=self.value_words)
                facts.append(Fact(key, " ".join(self.value_vocabulary[index] for index in values)))
        return facts

    def sentence(self, fact: Fact) -> str:
        """The fact as a sentence of the template."""
        return self.template.replace("{key}", fact.key).replace("{value}", fact.value)

    def encode_fact(self, fact: Fact) -> EncodedFact:
        """Tokens of the fact's sentence and where its answer stands.

        Raises:
            ValueError: the value's words are not one piece each inside the sentence.
        """
        sentence = self.sentence(fact)
        before = self.template[: self.template.index("{value}")].replace("{key}", fact.key)
        tokens = self.tokenizer.encode(sentence)
        question = self.tokenizer.encode(before.rstrip(" "))
        answer = slice(len(question), len(question) + len(fact.value.split()))
        told = self.tokenizer.decode(tokens[answer]).split()
        if tokens[: answer.start] != question or told != fact.value.split():
            raise ValueError(
                f"in {sentence!r} the words of the value {fact.value!r} are not one piece each (the tokenizer gives "
                f"{told} there); in --needle-template, put a space before {{value}} and no letters directly after it, "
                "and use words that are single pieces"
            )
        return EncodedFact(tuple(tokens), answer)

    def number_of_keys(self) -> int:
        """How many different keys can be drawn."""
        number = 1
        for used in range(self.key_words):
            number *= max(0, len(self.key_vocabulary) - used)
        return number

    @staticmethod
    def _pick(rng: np.random.Generator, words: tuple[str, ...], count: int) -> list[str]:
        return [words[index] for index in rng.choice(len(words), size=count, replace=False)]


def check_template(template: str) -> None:
    """Raise ValueError for a template without {key} or {value}, or with the value first."""
    for name in ("{key}", "{value}"):
        if template.count(name) != 1:
            raise ValueError(f"--needle-template {template!r} must contain {name} exactly once")
    if template.index("{value}") < template.index("{key}"):
        raise ValueError(
            f"--needle-template {template!r} must have {{value}} after {{key}}, because the value is what is asked for"
        )


def _warn_of_words_between(template: str) -> None:
    between = template[template.index("{key}") + len("{key}") : template.index("{value}")]
    if between.strip():
        logger.warning(
            "--needle-template %r has %r between {key} and {value}: small models do not learn to recall across them",
            template,
            between.strip(),
        )
