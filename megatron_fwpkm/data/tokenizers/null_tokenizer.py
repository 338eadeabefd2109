"""Numbers as text, for tests and for corpora that are token ids already."""

from __future__ import annotations

from collections.abc import Sequence

from ...config.data import MOST_NUMBERS
from .base import Tokenizer


class NullTokenizer(Tokenizer):
    """Text is numbers separated by white space; the id after the last number ends documents (so N numbers make N + 1
    ids)."""

    def __init__(self, numbers: int) -> None:
        if numbers < 1:
            raise ValueError(f"--vocab-size {numbers} must be at least 1")
        if numbers > MOST_NUMBERS:
            raise ValueError(f"--vocab-size {numbers} must be at most {MOST_NUMBERS}: ids are 32-bit integers")
        super().__init__("NullTokenizer", None, numbers + 1, numbers, None, [str(numbers).encode()])

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, which holds numbers separated by spaces."""
        try:
            ids = [int(word) for word in text.split()]
        except ValueError as error:
            raise ValueError(f"NullTokenizer expects numbers separated by spaces: {error}") from error
        if ids and not (0 <= min(ids) and max(ids) < self.eod):
            raise ValueError(f"numbers {min(ids)}..{max(ids)} are outside 0..{self.eod - 1} (--vocab-size {self.eod})")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as numbers separated by spaces, without EOD."""
        self._check_range(ids)
        return " ".join(str(int(token)) for token in ids if token != self.eod)

    def whole_words(self) -> list[str]:
        """Every number is a word."""
        return [str(token) for token in range(self.eod)]
