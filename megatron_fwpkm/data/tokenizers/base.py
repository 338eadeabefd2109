"""Tokenizers behind one small interface. Free of torch.

`build_tokenizer(DataConfig)` is the only way in. Three rules hold for every kind: text is text (a literal `</s>` never
becomes a control token), the end-of-document token is known or the tokenizer is refused, and `identity` changes
whenever the ids of any text could. The objects also satisfy what `megatron.core` datasets ask of a tokenizer
(`vocab_size`, `eod`, `unique_identifiers`); they have no `pad` on purpose, so that no token of the text is ever taken
for padding.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_WORD = re.compile(r"[^\W\d_]{4,}")


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes: `kind` (the --tokenizer-type), `path` (file or folder it came from, None for NullTokenizer),
    `vocab_size`, `eod` (id of the end-of-document token), `bos` (id or None), `identity` (hex SHA-256 of everything
    that decides the ids).
    """

    def __init__(
        self, kind: str, path: Path | None, vocab_size: int, eod: int, bos: int | None, identity_parts: Iterable[bytes]
    ) -> None:
        self.kind = kind
        self.path = path
        self.vocab_size = vocab_size
        self.eod = eod
        self.bos = bos
        digest = hashlib.sha256(kind.encode())
        for part in identity_parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        self.identity = digest.hexdigest()

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        """What `megatron.core` hashes into the name of a dataset's index cache."""
        return {"class": self.kind, "identity": self.identity}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS or EOD. Raises ValueError where the text cannot be encoded."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control tokens give no text."""

    @abstractmethod
    def whole_words(self) -> list[str]:
        """Words that are exactly one piece when they follow a space in a sentence, in order of id (for BPE roughly
        the most frequent first). For text tokenizers: lower-case words of at least four letters."""

    def control_tokens(self) -> dict[str, int]:
        """Control tokens by the text that spells them; none by default."""
        return {}

    def _check_range(self, ids: Sequence[int]) -> None:
        if len(ids) and not (0 <= min(ids) and max(ids) < self.vocab_size):
            raise ValueError(
                f"token ids must be between 0 and {self.vocab_size - 1}, but range from {min(ids)} to {max(ids)}"
            )


def unencodable(text: str, error: Exception) -> ValueError:
    """The error to raise for `text`: the libraries say little about text that UTF-8 cannot hold, this where it is."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as surrogate:
        return ValueError(f"lone surrogate at character {surrogate.start}: not valid Unicode")
    return ValueError(f"the tokenizer failed: {error}")


def is_plain_word(word: str) -> bool:
    """Whether a word is good for facts: at least four letters, all lower case."""
    return word.islower() and _WORD.fullmatch(word) is not None
