"""Real text to hide facts in: read and tokenized once, then sliced by tokens or by words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.tokenizers import Tokenizer
from ..text_files import check_text_files, read_text_file

FLAG = "--haystack"
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class WordText:
    """Texts that are cut by words, which is what stands between white space, and tokenized when they have been cut."""

    tokenizer: Tokenizer
    texts: tuple[str, ...]
    starts: tuple[np.ndarray, ...]
    """Per text the characters at which its words begin, and its end: int64 [words + 1]."""
    border: np.ndarray
    """int64: tokens between two texts."""

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Tokenizer, border: np.ndarray) -> WordText:
        """Find the words of some texts."""
        starts = [np.asarray([*(word.start() for word in _WORD.finditer(text)), len(text)]) for text in texts]
        return cls(tokenizer, tuple(texts), tuple(starts), border)

    def cut(self, first: int, count: int) -> np.ndarray:
        """Tokens of `count` words from the word with number `first` on, over all texts: int64 [N]."""
        parts: list[np.ndarray] = []
        before = 0
        for text, starts in zip(self.texts, self.starts, strict=True):
            words = len(starts) - 1
            begin, end = max(first - before, 0), min(first + count - before, words)
            before += words
            if begin < end:
                piece = text[starts[begin] : starts[end]].rstrip()
                parts += [self.border] * bool(parts) + [np.asarray(self.tokenizer.encode(piece), dtype=np.int64)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Haystack:
    """All texts as one row of tokens, an end-of-document token (and BOS, where documents begin with it) between two."""

    tokens: np.ndarray
    """int64 [N]"""
    sources: tuple[str, ...]
    """The files, in order."""
    file_tokens: tuple[tuple[int, int], ...] = ()
    """Per file, where its tokens begin and end."""
    words: WordText | None = None
    """The texts, where contexts are measured in words."""

    def ends(self, file: int | None = None) -> tuple[int, int]:
        """Where the whole haystack or one of its files begins and ends, in tokens, or in words if it is cut by them."""
        if self.words is None:
            return (0, len(self.tokens)) if file is None else self.file_tokens[file]
        sizes = [len(starts) - 1 for starts in self.words.starts]
        return (0, sum(sizes)) if file is None else (sum(sizes[:file]), sum(sizes[: file + 1]))

    def cut(self, rng: np.random.Generator, length: int, file: int | None = None) -> np.ndarray:
        """Tokens of a stretch of `length` tokens (or words) from anywhere, or from anywhere in one file.

        Raises:
            ValueError: there are fewer.
        """
        begin, end = self.ends(file)
        if end - begin < length:
            raise ValueError(self.too_short(length, file))
        start = begin + int(rng.integers(end - begin - length + 1))
        return self.tokens[start : start + length] if self.words is None else self.words.cut(start, length)

    def too_short(self, length: int, file: int | None = None) -> str:
        """What to say where a context needs `length` tokens or words, and there are fewer."""
        begin, end = self.ends(file)
        unit = "tokens" if self.words is None else "words"
        what = f"the haystack ({', '.join(self.sources)})" if file is None else f"{FLAG} {self.sources[file]}"
        return f"{what} has only {end - begin} {unit}, but a context needs {length}: add text, or use shorter --lengths"


def load_haystack(
    paths: Sequence[str], tokenizer: Tokenizer, bos: int | None = None, *, by_words: bool = False
) -> Haystack:
    """Read and tokenize text files, plain or gzip (told by content); `bos` stands before every text but the first, for
    what is cut begins with its own. `by_words`: to be cut by words.

    Raises:
        ValueError: no file, a missing, empty or damaged one, or one that is not UTF-8.
    """
    check_text_files(FLAG, paths)
    texts = [read_text_file(FLAG, path) for path in paths]
    border = np.asarray([tokenizer.eod] if bos is None else [tokenizer.eod, bos], dtype=np.int64)
    rows: list[np.ndarray] = []
    places, length = [], 0
    for text in texts:
        row = np.asarray(tokenizer.encode(text), dtype=np.int64)
        places.append((length, length + len(row)))
        length += len(row) + len(border)
        rows += [row, border]
    words = WordText.of(texts, tokenizer, border) if by_words else None
    return Haystack(np.concatenate(rows[:-1]), tuple(paths), tuple(places), words)
