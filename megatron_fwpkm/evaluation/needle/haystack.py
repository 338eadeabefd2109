"""Real text to hide facts in: read and tokenized once, then sliced."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.tokenizers import Tokenizer

_GZIP_MAGIC = b"\x1f\x8b"


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
    check_haystack_files(paths)
    rows = []
    for path in paths:
        text = _read(Path(path))
        if not text.strip():
            raise ValueError(f"--haystack {path} contains no text")
        border = [tokenizer.eod] if bos is None else [tokenizer.eod, bos]
        rows += [np.asarray(tokenizer.encode(text), dtype=np.int64), np.asarray(border, dtype=np.int64)]
    return Haystack(np.concatenate(rows[:-1]), tuple(paths))


def check_haystack_files(paths: Sequence[str]) -> None:
    """Raise ValueError if no file is given or one does not exist."""
    if not paths:
        raise ValueError("--haystack is empty; give at least one text file")
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"--haystack {path} does not exist or is not a file")


def _read(path: Path) -> str:
    data = path.read_bytes()
    try:
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"--haystack {path} contains damaged gzip data: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--haystack {path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at "
                         f"{error.start}") from error  # fmt: skip
