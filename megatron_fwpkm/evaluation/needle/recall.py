"""How much was recalled: answers compared with the expected values, and accuracies with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..confidence import wilson_interval


@dataclass(frozen=True)
class Answer:
    """The answer to one question."""

    expected: tuple[int, ...]
    """Tokens of the value."""
    given: tuple[int, ...]
    """The same number of tokens, generated greedily."""

    @property
    def right_tokens(self) -> int:
        """Number of value tokens that are correct at their position."""
        return sum(a == b for a, b in zip(self.expected, self.given, strict=True))

    @property
    def exact(self) -> bool:
        """Whether all tokens are correct."""
        return self.given == self.expected

    @property
    def first(self) -> bool:
        """Whether the first token is correct."""
        return self.given[0] == self.expected[0]


@dataclass(frozen=True)
class Recall:
    """Correct answers among `samples`; fractions are nan without samples."""

    samples: int
    exact_match: float
    """Fraction of answers with every token correct."""
    low: float
    """Lower end of the Wilson 95 % interval of exact_match."""
    high: float
    """Upper end of it."""
    first_token: float
    """Fraction of answers with the first token correct."""
    token_accuracy: float
    """Fraction of all value tokens that are correct at their position."""


def recall(answers: Iterable[Answer]) -> Recall:
    """Summary of answers."""
    answers = list(answers)
    count = len(answers)
    if not count:
        return Recall(0, math.nan, 0.0, 1.0, math.nan, math.nan)
    exact = sum(answer.exact for answer in answers)
    tokens = sum(len(answer.expected) for answer in answers)
    return Recall(
        count,
        exact / count,
        *wilson_interval(exact, count),
        sum(answer.first for answer in answers) / count,
        sum(answer.right_tokens for answer in answers) / tokens,
    )
