"""What a SentencePiece model file says of itself, read without the protobuf package. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NORMAL, USER_DEFINED, UNUSED = 1, 4, 5
"""Kinds of pieces, as sentencepiece_model.proto numbers them."""
_KIND = bytes([3 << 3])


def split_model(model: bytes) -> tuple[list[bytes], bytes]:
    """The messages of a model's pieces, which come first, and the rest: its settings."""
    pieces, at = [], 0
    while model[at : at + 1] == b"\n":
        size, at = model[at + 1], at + 2
        if size >= 128:
            size, at = size + (model[at] - 1) * 128, at + 1
        pieces.append(model[at : at + size])
        at += size
    return pieces, model[at:]


def piece_kinds(pieces: list[bytes]) -> list[int]:
    """The kind of each of `split_model`'s pieces."""
    # It comes last, in two bytes, and is not written where it is NORMAL; a score may end in such bytes, too.
    return [dict(_fields(piece)).get(3, NORMAL) if piece[-2:-1] == _KIND else NORMAL for piece in pieces]


def check_keeps_text(settings: bytes) -> None:
    """Raises ValueError for a model, by its `split_model` settings, that is not BPE, or whose pieces spell another text
    than the one that is encoded, but for a space in front."""
    specs = {number: dict(_fields(value)) for number, value in _fields(settings) if number in (2, 3)}
    trainer, normalizer = specs.get(2, {}), specs.get(3, {})
    if trainer.get(3, 1) != 2:
        raise ValueError("the model is not BPE")
    if not trainer.get(35, 0) or trainer.get(24, 0):
        raise ValueError("the model has no byte fallback, or puts spaces after words")
    if normalizer.get(2) or normalizer.get(4, 1) or not normalizer.get(5, 1):
        raise ValueError("the model normalizes text")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protobuf message, without its schema: the package is not needed for a few flags."""
    at = 0

    def varint() -> int:
        """Read the next integer of variable length."""
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
