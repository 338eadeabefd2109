"""Common words (a numbered list in which ten words are frequent) and frequent words (a coded text)."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence

import numpy as np

from .prompt_sizes import Count, RulerSample

COMMON = 10
_LIST_TEXT = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
_LIST_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
_CODED_TEXT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
    "three most frequently appeared words in the above coded text?"
)
_CODED_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
_LETTERS = 6
_ZETA_OF_2 = math.pi**2 / 6


class CommonWordPrompts:
    """Draws the samples of common words, after an example with its answer. The size is the number of words."""

    STEP = 10
    """The smallest size, and what is taken off a sample that is too long."""
    SIZE_OF_ESTIMATE = 4096
    """Size of the draw that tells how many tokens a word takes."""

    def __init__(self, seed: int, words: Sequence[str], more_words: Sequence[str], length: int) -> None:
        """`words`: sorted; `more_words`: instead of them where a list needs more, or none."""
        self._seed, self._more_words = seed, more_words
        self._words = list(words)
        random.Random(seed).shuffle(self._words)
        self._random = random.Random(seed)
        self._example = (20, 3, 1) if length < 4096 else (40, 10, 3)
        self._repeats = (6, 1) if length < 4096 else (30, 3)

    @property
    def most(self) -> int:
        """The largest size."""
        return max(len(self._words), len(self._more_words))

    def draw(self, size: int) -> RulerSample:
        """A new sample."""
        example, common = self._list(*self._example)
        solution = f"{_LIST_TEXT.format(context=example)}{_LIST_PREFIX} {_numbered(common)}"
        context, answers = self._list(size, *self._repeats)
        return RulerSample(f"{solution}\n{_LIST_TEXT.format(context=context)}", _LIST_PREFIX, tuple(answers))

    def _list(self, size: int, common_repeats: int, other_repeats: int) -> tuple[str, list[str]]:
        words = self._random.sample(self._words if size <= len(self._words) else self._more_words, size)
        common, others = words[:COMMON], words[COMMON:]
        listed = common * common_repeats + others * other_repeats
        random.Random(self._seed).shuffle(listed)
        return _numbered(listed), common


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


class FrequentWordPrompts:
    """Draws the samples of frequent words: coded words, whose frequency falls with the square of their rank."""

    def __init__(self, seed: int, count: Count, limit: int) -> None:
        """`limit`: tokens of a prompt. Finds the number of words that fit."""
        self._seed, self._count, self._limit = seed, count, limit
        self._random = random.Random(seed)
        self._step = limit // 32
        self._size = self._fitting_size()

    def draw(self) -> RulerSample:
        """A new sample, of at most `limit` tokens. Raises ValueError where that is too short."""
        codes, size = self._codes(), self._size
        while self._count(sample := self._sample(codes, size)) > self._limit:
            size -= self._step
            if size <= 0:
                raise ValueError(f"not even the smallest sample fits into {self._limit} tokens")
        return sample

    def _fitting_size(self) -> int:
        codes, size = self._codes(), self._limit // _LETTERS
        while self._count(self._sample(codes, size)) < self._limit:
            size += self._step
        return size - self._step

    def _codes(self) -> list[str]:
        """The words by rank, of which the first is dots, to be ignored."""
        wanted = self._limit // 50
        drawn = [self._code() for _ in range(wanted)]
        while len(set(drawn)) < wanted:
            drawn.append(self._code())
        codes = sorted(set(drawn))
        random.Random(self._seed).shuffle(codes)
        return ["...", *codes[1:]]

    def _code(self) -> str:
        return "".join(self._random.choices(string.ascii_lowercase, k=_LETTERS))

    def _sample(self, codes: Sequence[str], size: int) -> RulerSample:
        ranks = np.arange(1, len(codes) + 1)
        counts = (size * ranks**-2.0 / _ZETA_OF_2).astype(int)
        words = [word for word, count in zip(codes, counts, strict=True) for _ in range(count)]
        random.Random(self._seed).shuffle(words)
        return RulerSample(_CODED_TEXT.format(context=" ".join(words)), _CODED_PREFIX, tuple(codes[1:4]))
