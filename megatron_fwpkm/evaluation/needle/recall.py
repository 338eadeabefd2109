"""How much was recalled: an answer beside the value asked for, and counts of right ones with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..confidence import wilson_interval


@dataclass(frozen=True)
class Answer:
    """What one question brought."""

    expected: tuple[int, ...]
    """Tokens of the value."""
    given: tuple[int, ...]
    """Tokens the model generated greedily, as many."""

    @property
    def right_tokens(self) -> int:
        """Tokens of the value that are right in their places."""
        return sum(a == b for a, b in zip(self.expected, self.given, strict=True))

    @property
    def exact(self) -> bool:
        """Whether all tokens are right."""
        return self.given == self.expected

    @property
    def first(self) -> bool:
        """Whether the first token is right."""
        return self.given[0] == self.expected[0]


@dataclass(frozen=True)
class Recall:
    """Right answers among `samples`; fractions are nan where there are none."""

    samples: int
    exact_match: float
    """Fraction with every token of the value right."""
    low: float
    """Lower end of the Wilson 95 % interval of exact_match."""
    high: float
    """Upper end of it."""
    first_token: float
    """Fraction with the first token right."""
    token_accuracy: float
    """Fraction of all value tokens that are right in their places."""


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
