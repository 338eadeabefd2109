"""How long a sample is made: the search of NVIDIA's generator, whose every try also moves the random numbers on.

A generator draws a sample of a size (sentences, words or documents). RULER looks for the largest size that fits into
the length by halving an interval, with a new draw at every step, and makes a sample that is too long a little smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_TRIES_AT_SMALLEST = 50
"""Draws of the smallest size before a length is refused; NVIDIA's generator would draw for ever."""


class Misfit(Exception):
    """A draw that cannot be used, whatever its length."""


@dataclass(frozen=True)
class RulerSample:
    """A prompt and its answers."""

    text: str
    """Context and question."""
    prefix: str
    """The beginning of the answer, which the model is given."""
    answers: tuple[str, ...]
    """What a right answer contains."""

    @property
    def prompt(self) -> str:
        """What the model reads."""
        return self.text + self.prefix


Draw = Callable[[int], RulerSample]
"""A new sample of a size."""
Count = Callable[[RulerSample], int]
"""Tokens of a sample and its answer."""


def largest_size(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest size in [low, high] that fits, found by halving; `low` if none does."""
    best = low
    while low <= high:
        middle = (low + high) // 2
        if fits(middle):
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best


def fitting_sample(draw: Draw, count: Count, size: int, step: int, length: int) -> tuple[RulerSample, int]:
    """A sample of at most `length` tokens, and its number of tokens.

    Args:
        draw: of the generator.
        count: tokens of a sample.
        size: of the first draw; every next one is `step` smaller until none is left to take off.
        step: see `size`.
        length: the limit.

    Raises:
        ValueError: even the smallest size is too long.
    """
    smallest = 0
    while smallest < _TRIES_AT_SMALLEST:
        try:
            sample = draw(size)
            if (tokens := count(sample)) <= length:
                return sample, tokens
        except Misfit:
            pass
        if size > step:
            size -= step
        else:
            smallest += 1
    raise ValueError(f"not even the smallest sample fits into {length} tokens")
