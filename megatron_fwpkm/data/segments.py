"""SentencePiece BPE by a store of segments between which no piece reaches. Free of torch.

Merges only ever make pieces, so they never reach over an edge between two characters that stand side by side in no
piece; each side can be encoded alone, once. Texts are cut at spaces and line ends. What is met for the first time in a
few texts is encoded in one call, a segment to a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import filterfalse
from typing import Any

import numpy as np

from .indexed_format import token_dtype
from .tokenizers import SentencePieceTokenizer

_SPACE = "\u2581"
_MARK = "\0"
"""Stands for a space that another space precedes; unlike U+2581 it leaves a text at one byte a character."""
_SEGMENTS_KEPT = 700_000
_LONGEST_KEPT = 48
_TEXTS_AT_ONCE = 4


class SegmentEncoder:
    """Texts to their tokens as bytes in the dataset's dtype.

    A segment is the text behind one space up to the next, and a line end begins one too. The store is emptied when it
    is full: what is frequent comes back at once, also where the kind of text changes.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        """Raises ValueError where this would not be exact: pieces with a space behind another character or a line end
        beside others, or a model that changes text."""
        assert tokenizer.path is not None
        _check_model(tokenizer.path.read_bytes())
        _check_edges(tokenizer.pieces())
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._line_end = tokenizer.encode("\n")[-1]
        self._store: dict[str, bytes] = {}

    def __call__(self, texts: list[str]) -> list[bytes]:
        """Tokens of each text."""
        groups = (texts[at : at + _TEXTS_AT_ONCE] for at in range(0, len(texts), _TEXTS_AT_ONCE))
        return [tokens for group in groups for tokens in self._group(group)]

    def _group(self, texts: list[str]) -> list[bytes]:
        if len(self._store) >= _SEGMENTS_KEPT:
            self._store.clear()
        texts_cut = [_segments(text) for text in texts]
        is_known, look_up = self._store.__contains__, self._store.__getitem__
        new = dict.fromkeys(segment for cut in texts_cut for segment in filterfalse(is_known, cut or ()))
        if new:
            self._store.update(self._encoded(list(new)))
        documents = [
            self._bytes(self._tokenizer.encode(text)) if cut is None else b"".join(map(look_up, cut))
            for text, cut in zip(texts, texts_cut, strict=True)
        ]
        for segment in new:
            if len(segment) > _LONGEST_KEPT:
                del self._store[segment]
        return documents

    def _encoded(self, segments: list[str]) -> dict[str, bytes]:
        """All in one call of the tokenizer, each behind a line end, which is one token whatever stands around it."""
        lines = [segment[1:] if segment.startswith("\n") else " " + segment for segment in segments]
        ids = np.array(self._tokenizer.encode("\n" + "\n".join(lines).replace(_MARK, " ")), self._dtype)
        width = self._dtype.itemsize
        edges = np.append(np.flatnonzero(ids == self._line_end), len(ids)) * width
        begins = edges[:-1] + [0 if segment.startswith("\n") else width for segment in segments]
        parts = map(ids.tobytes().__getitem__, map(slice, begins.tolist(), edges[1:].tolist()))
        return dict(zip(segments, parts, strict=True))

    def _bytes(self, ids: list[int]) -> bytes:
        return np.array(ids, self._dtype).tobytes()


def _segments(text: str) -> list[str] | None:
    """The segments of a text, without the space in front of each; None where the text holds the signs for spaces."""
    if _MARK in text or _SPACE in text:
        return None
    if "  " in text or text.startswith(" "):  # the tokenizer's own space in front belongs to the first run
        text = f" {text}".replace("  ", " " + _MARK).replace(_MARK + " ", _MARK * 2)[1:]
    return text.replace("\n", " \n").split(" ") if text else []


def _check_edges(pieces: list[str]) -> None:
    """Raises ValueError for pieces that reach over a space or a line end."""
    for piece in pieces:
        if "\n" in piece[1:] or (piece.startswith("\n") and piece != "\n") or _SPACE in piece.lstrip(_SPACE):
            raise ValueError(f"piece {piece!r} reaches over a space or a line end")


def model_settings(model: bytes) -> bytes:
    """A SentencePiece model without its pieces (but those behind an overlong one), which come first, each with its
    length."""
    at = 0
    while model[at : at + 1] == b"\n" and model[at + 1] < 128:
        at += 2 + model[at + 1]
    return model[at:]


def _check_model(model: bytes) -> None:
    """Raises ValueError for a model whose texts cannot be cut."""
    specs = {number: dict(_fields(value)) for number, value in _fields(model_settings(model)) if number in (2, 3)}
    trainer, normalizer = specs.get(2, {}), specs.get(3, {})
    if trainer.get(3, 1) != 2:
        raise ValueError("the model is not BPE")
    if not trainer.get(35, 0) or trainer.get(24, 0):
        raise ValueError("the model has no byte fallback, or puts spaces behind words")
    if normalizer.get(2) or normalizer.get(4, 1) or not normalizer.get(3, 1) or not normalizer.get(5, 1):
        raise ValueError("the model normalizes text")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protobuf message, without its schema: the protobuf package is not needed for four
    flags."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield tag >> 3, data[at : at + size]
        at += size
