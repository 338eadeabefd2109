"""Kinds of facts that an evaluation hides: words, numbers and UUIDs. Free of torch.

Words are the facts of training. Numbers and UUIDs are worded as in the paper's evaluation; a tokenizer cuts them as it
likes, so their answers have any number of tokens, and the border between question and answer is checked for each.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from itertools import takewhile
from typing import Protocol

import numpy as np

from ...config import NeedleConfig
from ...data.tokenizers import Tokenizer
from ...data.training.needles import EncodedFact, Fact, NeedleSpec, check_template
from .settings import DistractorKind, NeedleKind

_TRIES = 1000
_PROBES = 64


class FactKind(Protocol):
    """How facts are drawn, worded and tokenized."""

    @property
    def chance_exact(self) -> float:
        """Probability of guessing a value."""

    @property
    def chance_token(self) -> float | None:
        """Probability of guessing one of its tokens; None where that depends on the tokenizer."""

    def draw(self, rng: np.random.Generator, count: int) -> list[Fact]:
        """Facts with different keys."""

    def draw_value(self, rng: np.random.Generator) -> str:
        """Any value."""

    def near_key(self, rng: np.random.Generator, key: str) -> str:
        """A key that shares all but the end of `key`; it may be the same."""

    def sentence(self, fact: Fact) -> str:
        """The fact in words."""

    def encode_fact(self, fact: Fact) -> EncodedFact:
        """Tokens of a fact's sentence and where its answer stands; raises ValueError where the tokenizer cannot."""

    def number_of_keys(self) -> int:
        """How many different keys there are."""


class WordFacts(NeedleSpec):
    """The facts of training: words of one token each."""

    @property
    def chance_token(self) -> float | None:
        """One of the words that values are made of."""
        return 1 / len(self.value_vocabulary)

    @property
    def chance_exact(self) -> float:
        """All of them."""
        return 1 / len(self.value_vocabulary) ** self.value_words

    def draw_value(self, rng: np.random.Generator) -> str:
        """Words, drawn freely."""
        picked = rng.integers(len(self.value_vocabulary), size=self.value_words)
        return " ".join(self.value_vocabulary[index] for index in picked)

    def near_key(self, rng: np.random.Generator, key: str) -> str:
        """The same words but for the last."""
        *kept, _ = key.split()
        free = [word for word in self.key_vocabulary if word not in kept]
        return " ".join([*kept, free[int(rng.integers(len(free)))]])


class _DrawnFacts(ABC):
    """Facts whose keys and values are strings that a tokenizer cuts as it likes."""

    chance_exact: float
    chance_token: float | None = None

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        """Raises ValueError for a template without {key} or {value}, or a tokenizer that cannot express the facts."""
        check_template(template)
        self.tokenizer = tokenizer
        self.template = template
        self._spaces = 0
        probes = self.draw(np.random.default_rng(0), _PROBES)
        self._spaces = min(self._lone_spaces(self.encode_fact(fact)) for fact in probes)

    def _lone_spaces(self, fact: EncodedFact) -> int:
        """Tokens at the beginning of an answer that are nothing but a space."""
        return sum(1 for _ in takewhile(lambda token: not self.tokenizer.decode([token]).strip(), fact.answer_tokens))

    @abstractmethod
    def draw_key(self, rng: np.random.Generator) -> str:
        """Any key."""

    @abstractmethod
    def draw_value(self, rng: np.random.Generator) -> str:
        """Any value."""

    @abstractmethod
    def number_of_keys(self) -> int:
        """How many different keys there are."""

    def draw(self, rng: np.random.Generator, count: int) -> list[Fact]:
        """Facts with different keys and free values; raises ValueError for more facts than keys."""
        if count > self.number_of_keys():
            raise ValueError(f"{count} facts need as many different keys, but there are {self.number_of_keys()}")
        keys: dict[str, str] = {}
        while len(keys) < count:
            key, value = self.draw_key(rng), self.draw_value(rng)
            keys.setdefault(key, value)
        return [Fact(key, value) for key, value in keys.items()]

    def sentence(self, fact: Fact) -> str:
        """The fact as a sentence of the template."""
        return self.template.replace("{key}", fact.key).replace("{value}", fact.value)

    def encode_fact(self, fact: Fact) -> EncodedFact:
        """Tokens of the sentence; a space that is always a token of its own before a value belongs to the question.

        Raises:
            ValueError: the value's tokens reach into what stands around it, or do not spell it.
        """
        before, after = (part.replace("{key}", fact.key) for part in self.template.split("{value}"))
        tokens = self.tokenizer.encode(before + fact.value + after)
        question = self.tokenizer.encode(before.rstrip(" "))
        start, end = len(question), len(self.tokenizer.encode(before + fact.value))
        told = self.tokenizer.decode(tokens[start:end]).strip()
        if tokens[: len(question)] != question or told != fact.value:
            raise ValueError(
                f"in {before + fact.value + after!r} the tokens of the value spell {told!r}: this tokenizer joins the "
                "value with the text around it; change --needle-template or use another --needle-kind"
            )
        return EncodedFact(tuple(tokens), slice(start + self._spaces, end))


class DigitFacts(_DrawnFacts):
    """Numbers of six or seven digits under keys of four."""

    chance_exact = 1 / (10**7 - 10**5)

    def draw_key(self, rng: np.random.Generator) -> str:
        """Four digits."""
        return str(rng.integers(1000, 10_000))

    def draw_value(self, rng: np.random.Generator) -> str:
        """Six or seven digits."""
        return str(rng.integers(10**5, 10**7))

    def near_key(self, rng: np.random.Generator, key: str) -> str:
        """Another last digit."""
        return key[:-1] + str(rng.integers(10))

    def number_of_keys(self) -> int:
        """Those of four digits."""
        return 9000


class UuidFacts(_DrawnFacts):
    """Random UUIDs (version 4) as keys and values."""

    chance_exact = 2.0**-122

    def draw_key(self, rng: np.random.Generator) -> str:
        """A UUID."""
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))

    def draw_value(self, rng: np.random.Generator) -> str:
        """A UUID."""
        return self.draw_key(rng)

    def near_key(self, rng: np.random.Generator, key: str) -> str:
        """Another last group."""
        return key.rpartition("-")[0] + "-" + rng.bytes(6).hex()

    def number_of_keys(self) -> int:
        """More than anyone draws."""
        return 2**122


def fact_kind(kind: NeedleKind, needle: NeedleConfig, tokenizer: Tokenizer) -> FactKind:
    """The facts of an evaluation.

    Raises:
        ValueError: as `NeedleSpec.from_config`, or a tokenizer that cannot express them.
    """
    if kind == "words":
        return WordFacts.from_config(needle, tokenizer)
    return (DigitFacts if kind == "digits" else UuidFacts)(tokenizer, needle.template)


def draw_distractors(
    kind: FactKind, rng: np.random.Generator, facts: list[Fact], count: int, how: DistractorKind
) -> list[Fact]:
    """Facts that are easily taken for the first of `facts`.

    Args:
        kind: how facts are drawn.
        rng: where from.
        facts: those of the context and others that must not be in it; distractors have other keys.
        count: how many.
        how: `same-key`: a key that shares all but its end with the asked one, and another value. `same-value`: the
            value that is asked for, under another key.

    Raises:
        ValueError: there are not so many keys.
    """
    asked, taken = facts[0], {fact.key for fact in facts}
    found: list[Fact] = []
    for _ in range(_TRIES * count):
        if len(found) == count:
            return found
        if how == "same-value":
            key, value = kind.draw(rng, 1)[0].key, asked.value
        else:
            key, value = kind.near_key(rng, asked.key), kind.draw_value(rng)
        if key not in taken and (value != asked.value or how == "same-value"):
            taken.add(key)
            found.append(Fact(key, value))
    if len(found) == count:
        return found
    raise ValueError(
        f"--distractors {count} need as many keys like {asked.key!r}, but only {len(found)} were found; use fewer"
    )
