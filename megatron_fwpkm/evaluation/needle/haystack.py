"""Real text to hide facts in: read and tokenized once, then sliced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.tokenizers import Tokenizer
from ..text_files import check_text_files, read_text_file

FLAG = "--haystack"


@dataclass(frozen=True)
class Haystack:
    """All texts as one row of tokens, an end-of-document token (and BOS, where documents begin with it) between two."""

    tokens: np.ndarray
    """int64 [N]"""
    sources: tuple[str, ...]
    """The files, in order."""

    def cut(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """A stretch of `length` tokens from anywhere. Raises ValueError when there are fewer."""
        room = len(self.tokens) - length
        if room < 0:
            raise ValueError(
                f"the haystack has only {len(self.tokens)} tokens, but a context needs {length}: add text to "
                f"--haystack ({', '.join(self.sources)}), or use shorter --lengths"
            )
        start = int(rng.integers(room + 1))
        return self.tokens[start : start + length]


def load_haystack(paths: Sequence[str], tokenizer: Tokenizer, bos: int | None = None) -> Haystack:
    """Read and tokenize text files, plain or gzip (told by content); `bos` stands before every text but the first, for
    what is cut begins with its own.

    Raises:
        ValueError: no file, a missing, empty or damaged one, or one that is not UTF-8.
    """
    check_text_files(FLAG, paths)
    rows = []
    for path in paths:
        text = read_text_file(FLAG, path)
        border = [tokenizer.eod] if bos is None else [tokenizer.eod, bos]
        rows += [np.asarray(tokenizer.encode(text), dtype=np.int64), np.asarray(border, dtype=np.int64)]
    return Haystack(np.concatenate(rows[:-1]), tuple(paths))

