"""How much was recalled: answers compared with the expected values, and accuracies with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..confidence import wilson_interval


@dataclass(frozen=True)
class Answer:
    """The answer to one question under one condition."""

    condition: str
    """What the model was given; see `NeedleSettings.conditions`."""
    reads: int
    """How many times the context was read before."""

    expected: tuple[int, ...]
    """Tokens of the value."""
    given: tuple[int, ...]
    """The same number of tokens, generated greedily."""
    rank: int
    """How many of the other candidate values are at least as likely as the right one."""
    candidates: int
    """Number of candidate values, the right one included."""

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

    @property
    def told_apart(self) -> bool:
        """Whether the right value is the most likely of the candidates."""
        return self.rank == 0


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
    candidate_accuracy: float
    """Fraction of answers whose value is more likely than every other candidate."""
    candidate_chance: float
    """The same for a model that knows nothing: the mean of 1 / candidates."""


def recall(answers: Iterable[Answer]) -> Recall:
    """Summary of answers."""
    answers = list(answers)
    count = len(answers)
    if not count:
        return Recall(0, math.nan, 0.0, 1.0, *[math.nan] * 4)
    exact = sum(answer.exact for answer in answers)
    tokens = sum(len(answer.expected) for answer in answers)
    return Recall(
        count,
        exact / count,
        *wilson_interval(exact, count),
        sum(answer.first for answer in answers) / count,
        sum(answer.right_tokens for answer in answers) / tokens,
        sum(answer.told_apart for answer in answers) / count,
        math.fsum(1 / answer.candidates for answer in answers) / count,
    )
