"""Byte-level BPE by the package gigatoken: Hugging Face's `tokenizer.json` and tiktoken's ranks. Free of torch.

The library gets texts in which nothing is left to do but to cut words and merge bytes. Texts are brought to a
tokenizer's normal form before; a text with an added token, or with letters of a script that the libraries do not know
alike, is encoded by the plain tokenizer.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from typing import Any
from unicodedata import is_normalized

import numpy as np

from ..indexed.indexed_format import token_dtype
from ..tokenizers import HuggingFaceTokenizer, TikTokenizer, Tokenizer
from .gigatoken_library import BoundedGigatoken, check_gigatoken
from .tokenizer_json import (
    SPLITS,
    check_tokenizer_json,
    gigatoken_json,
    normal_form,
    ranks_json,
    split_tables,
    text_tokens,
)

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]

Prepare = Callable[[str], bytes | None]
"""A text to what the library encodes; None for one that the plain tokenizer must encode."""

_CACHE_BYTES, _TEXT_PER_LOAD = 48_000_000, 1 << 62
"""Growth of this process after which the library is loaded anew (half a second); most text never gets there."""
_RARE_LETTERS = re.compile(b"\xf0[\x90-\x9c\x9e]")
"""Letters beyond the first 65,536 characters but for mathematical ones and ideographs, in UTF-8: of the new ones among
them the libraries do not know the same."""

_STAND_IN = b"\x01"
_APOSTROPHE_EXCHANGED = bytes(range(256)).translate(bytes.maketrans(b"'" + _STAND_IN, _STAND_IN + b"'"))


class ByteLevelEncoder:
    """Texts to their tokens as bytes in the dataset's dtype."""

    def __init__(self, tokenizer: HuggingFaceTokenizer | TikTokenizer) -> None:
        """Raises ValueError when the package is not there in the right version, or for a tokenizer whose tokens would
        not be the same, with the reason."""
        check_gigatoken()
        self._tokenizer: Tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._first = 0
        """Id of the library's first token."""
        if isinstance(tokenizer, TikTokenizer):
            self._prepare, description = _of_ranks(tokenizer)
            self._first = len(tokenizer.control_tokens())
        else:
            self._prepare, description = _of_json(tokenizer)
        from gigatoken.gigatoken_rs import load_hf_json

        file = tempfile.TemporaryFile()  # not in memory: 7 MB that are needed at most once in 100 MB of text
        file.write(description)
        del description

        def load() -> Any:
            """The library's tokenizer."""
            file.seek(0)
            return load_hf_json(file.read())

        self._encode = BoundedGigatoken(load, cache_bytes=_CACHE_BYTES, text_per_load=_TEXT_PER_LOAD)

    def __call__(self, texts: list[str]) -> list[bytes]:
        """Tokens of each text."""
        prepared = list(map(self._prepare, texts))
        encoded = self._encode([data for data in prepared if data is not None])
        return [
            self._plain(text) if data is None else self._bytes(next(encoded))
            for text, data in zip(texts, prepared, strict=True)
        ]

    def _bytes(self, ids: np.ndarray) -> bytes:
        if self._first:
            ids = ids + np.uint32(self._first)
        return ids.astype(self._dtype).tobytes()

    def _plain(self, text: str) -> bytes:
        return np.array(self._tokenizer.encode(text), self._dtype).tobytes()


def _of_json(tokenizer: HuggingFaceTokenizer) -> tuple[Prepare, bytes]:
    """How texts are prepared, and the description for the library."""
    description, vocab, merges = split_tables(tokenizer.file.read_bytes())
    check_tokenizer_json(description, vocab)
    form, added = normal_form(description), text_tokens(description)
    added += [tokenizer.normalized(token) for token in added]

    def prepare(text: str) -> bytes | None:
        """In the normal form; None with an added token or rare letters."""
        if any(map(text.__contains__, added)):
            return None
        if text.isascii():
            return text.encode()
        if form is not None and not is_normalized(form, text):  # type: ignore[arg-type]
            text = tokenizer.normalized(text)  # by the library itself: versions of Unicode differ
            if any(map(text.__contains__, added)):
                return None
        return _without_rare_letters(text.encode())

    return prepare, gigatoken_json(description, vocab, merges)


def _of_ranks(tokenizer: TikTokenizer) -> tuple[Prepare, bytes]:
    """Both patterns cut words as patterns that gigatoken knows, v1 but for contractions: it has no rule for them. There
    the apostrophe changes places with a control character, which is a sign like it without a rule."""
    exchanged = _APOSTROPHE_EXCHANGED if tokenizer.pattern == "v1" else bytes(range(256))
    split = SPLITS[{"v1": "qwen2", "v2": "nemotron"}[tokenizer.pattern]]

    def prepare(text: str) -> bytes | None:
        """With the apostrophe in its other place; None where that is taken, or with rare letters."""
        data = text.encode()
        if tokenizer.pattern == "v1":
            if _STAND_IN in data:
                return None
            data = data.translate(exchanged)
        return data if text.isascii() else _without_rare_letters(data)

    return prepare, _dumped(ranks_json([piece.translate(exchanged) for piece in tokenizer.pieces], split))


def _dumped(description: dict[str, Any]) -> bytes:
    return json.dumps(description).encode() if orjson is None else orjson.dumps(description)


def _without_rare_letters(data: bytes) -> bytes | None:
    return None if _RARE_LETTERS.search(data) else data
