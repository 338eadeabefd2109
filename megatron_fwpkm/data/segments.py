"""SentencePiece BPE by a store of segments between which no piece reaches. Free of torch.

Merges only ever make pieces, so they never reach over an edge between two characters that stand side by side in no
piece; each side can be encoded alone, once. Texts are cut at spaces and line ends. What is met for the first time in a
few texts is encoded in one call, a segment to a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from .indexed_format import token_dtype
from .tokenizers import SentencePieceTokenizer

_SPACE = "\u2581"
_MARK = "\0"
"""Stands for a space that another space precedes; unlike U+2581 it leaves a text at one byte a character."""
_SEGMENTS_KEPT = 500_000
_LONGEST_KEPT = 48
_TEXTS_AT_ONCE = 4
_NORMAL, _USER_DEFINED, _UNUSED = 1, 4, 5


class SegmentEncoder:
    """Texts to their tokens as bytes in the dataset's dtype.

    A segment is the text behind one space up to the next, and a line end begins one too. The store is emptied when it
    is full: what is frequent comes back at once, also where the kind of text changes.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        """Raises ValueError where this would not be exact: pieces with a space behind another character or a line end
        beside others, or a model that changes text."""
        assert tokenizer.path is not None
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        _check_edges(_pieces(tokenizer.path.read_bytes()))
        self._line_end = tokenizer.encode("\n")[-1]
        self._segments: dict[str, bytes] = {}

    def __call__(self, texts: list[str]) -> list[bytes]:
        """Tokens of each text."""
        groups = (texts[at : at + _TEXTS_AT_ONCE] for at in range(0, len(texts), _TEXTS_AT_ONCE))
        return [tokens for group in groups for tokens in self._group(group)]

    def _group(self, texts: list[str]) -> list[bytes]:
        look_up = self._segments.get
        documents = list[list[bytes | None]]()
        gaps = list[tuple[list[bytes | None], int, str]]()
        for text in texts:
            if _MARK in text or _SPACE in text:
                documents.append([self._bytes(self._tokenizer.encode(text))])
                continue
            if "  " in text or text.startswith(" "):  # the tokenizer's own space in front belongs to the first run
                text = f" {text}".replace("  ", " " + _MARK).replace(_MARK + " ", _MARK * 2)[1:]
            segments = text.replace("\n", " \n").split(" ") if text else []
            found = list(map(look_up, segments))
            documents.append(found)
            at = -1
            for _ in range(found.count(None)):
                at = found.index(None, at + 1)
                gaps.append((found, at, segments[at]))
        if gaps:
            new = self._new_segments(list({segment: None for _, _, segment in gaps}))
            for found, at, segment in gaps:
                found[at] = new[segment]
        return [b"".join(found) for found in documents]  # type: ignore[arg-type]

    def _new_segments(self, segments: list[str]) -> dict[str, bytes]:
        """All in one call of the tokenizer, each behind a line end, which is one token whatever stands around it."""
        lines = [segment[1:] if segment.startswith("\n") else " " + segment for segment in segments]
        ids = np.array(self._tokenizer.encode("\n" + "\n".join(lines).replace(_MARK, " ")), self._dtype)
        width = self._dtype.itemsize
        edges = np.append(np.flatnonzero(ids == self._line_end), len(ids)) * width
        tokens, new = ids.tobytes(), {}
        for segment, (begin, end) in zip(segments, pairwise(edges.tolist()), strict=True):
            new[segment] = tokens[begin if segment.startswith("\n") else begin + width : end]
        if len(self._segments) >= _SEGMENTS_KEPT:
            self._segments.clear()
        self._segments.update(pair for pair in new.items() if len(pair[0]) <= _LONGEST_KEPT)
        return new

    def _bytes(self, ids: list[int]) -> bytes:
        return np.array(ids, self._dtype).tobytes()


def _check_edges(pieces: list[str]) -> None:
    """Raises ValueError for pieces that reach over a space or a line end."""
    for piece in pieces:
        if re.search(f"[^{_SPACE}]{_SPACE}", piece) or ("\n" in piece and piece != "\n"):
            raise ValueError(f"piece {piece!r} reaches over a space or a line end")


def _pieces(model: bytes) -> list[str]:
    """The pieces that can be found in text. Raises ValueError when the model is none whose texts can be cut."""
    fields: dict[int, list[Any]] = {}
    for number, value in _fields(model):
        fields.setdefault(number, []).append(value)
    trainer = dict(_fields(fields.get(2, [b""])[-1]))
    normalizer = dict(_fields(fields.get(3, [b""])[-1]))
    if trainer.get(3, 1) != 2:
        raise ValueError("the model is not BPE")
    if not trainer.get(35, 0) or trainer.get(24, 0):
        raise ValueError("the model has no byte fallback, or puts spaces behind words")
    if normalizer.get(2) or normalizer.get(4, 1) or not normalizer.get(3, 1) or not normalizer.get(5, 1):
        raise ValueError("the model normalizes text")
    pieces = [dict(_fields(piece)) for piece in fields.get(1, [])]
    return [piece[1].decode() for piece in pieces if piece.get(3, _NORMAL) in (_NORMAL, _USER_DEFINED, _UNUSED)]


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
