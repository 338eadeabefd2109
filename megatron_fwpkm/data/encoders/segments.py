"""SentencePiece BPE by a store of segments between which no piece reaches. Free of torch.

Merges only ever make pieces, so they never reach over an edge between two bytes that stand side by side in no piece;
what is on each side can be encoded alone, once. Texts are cut at edges in front of spaces and signs and around line
ends. What is met for the first time is encoded together, a segment to a line.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

import numpy as np

from ..indexed.indexed_format import token_dtype
from ..tokenizers import SentencePieceTokenizer
from .segment_store import SegmentStore
from .sentencepiece_model import check_keeps_text, split_model

_SPACE = "\u2581"
_WINDOW = 1 << 16
"""Bytes looked at in one go: their arrays stay in the processor's cache."""
_BYTES_AT_ONCE = 1 << 13
"""Bytes of new segments for one call of the tokenizer."""
_TOKENS_KEPT = 1 << 22
_LINE = b"\n"


class SegmentEncoder:
    """Texts to their tokens as bytes in the dataset's dtype.

    The store is emptied when it is full: what is frequent comes back at once, also where the kind of text changes.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        """Raises ValueError where this would not be exact or of no use: a model that changes text, pieces with a line
        end beside others, or with a space behind most letters."""
        assert tokenizer.path is not None
        check_keeps_text(split_model(tokenizer.path.read_bytes())[1])
        self._before, self._behind = edge_classes(tokenizer.pieces())
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        *in_front, self._line_end = tokenizer.encode("\n")
        self._in_front = b" " if in_front else b""
        self._store = SegmentStore()
        self._tokens, self._used = np.empty(0, self._dtype), 0
        self._forget()

    def __call__(self, texts: list[str]) -> list[bytes]:
        """Tokens of each text."""
        whole = [not text or _SPACE in text for text in texts]
        documents = iter(self._documents([text for text, is_whole in zip(texts, whole, strict=True) if not is_whole]))
        return [
            np.array(self._tokenizer.encode(text), self._dtype).tobytes() if is_whole else next(documents)
            for text, is_whole in zip(texts, whole, strict=True)
        ]

    def _documents(self, texts: list[str]) -> list[bytes]:
        """The texts are a line each, with the space that most models put in front."""
        if not texts:
            return []
        lines = [self._in_front + text.encode() + _LINE for text in texts]
        begins = np.cumsum([0] + [len(line) for line in lines])
        tokens, places, count = [], [], 0
        for at, data, bounds in self._windows(b"".join(lines)):
            ids, lengths = self._window(data, bounds)
            first, last = np.searchsorted(begins, (at + bounds[0], at + bounds[-1]))
            before = np.concatenate(([0], np.cumsum(lengths)))
            places.append(count + before[np.searchsorted(bounds, begins[first:last] - at)])
            tokens.append(ids)
            count += len(ids)
        cuts = [*np.concatenate(places).tolist(), count]
        joined = np.concatenate(tokens)
        return [joined[begin : end - 1].tobytes() for begin, end in zip(cuts, cuts[1:], strict=False)]

    def _windows(self, data: bytes) -> Iterator[tuple[int, bytes, np.ndarray]]:
        """Parts of `data` that end at an edge: place in `data`, content, and where segments begin in it and the last
        one ends."""
        at, size = 0, _WINDOW
        while at < len(data):
            part = data[at : at + size + 1]
            before, behind = part[:-1].translate(self._before), part[1:].translate(self._behind)
            edges = np.flatnonzero(np.frombuffer(before, np.uint8) & np.frombuffer(behind, np.uint8)) + 1
            if at + len(part) == len(data):
                edges = np.append(edges, len(part))
            elif not len(edges):
                size *= 2
                continue
            if size > _WINDOW:  # one long segment alone: never more segments than the store has room for
                edges = edges[:1]
            end = int(edges[-1])
            yield at, part[:end], np.concatenate(([0], edges))
            at, size = at + end, _WINDOW

    def _window(self, data: bytes, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all segments, and how many each has."""
        if self._store.is_full or self._used > _TOKENS_KEPT:
            self._forget()
        numbers = self._store.find(data, bounds)
        unknown = np.flatnonzero(numbers == 0)
        if len(unknown):
            cut = zip(bounds[unknown].tolist(), bounds[unknown + 1].tolist(), strict=True)
            segments = [data[begin:end] for begin, end in cut]
            new = list(dict.fromkeys(segments))
            learned = dict(zip(new, self._learned(new).tolist(), strict=True))
            numbers[unknown] = [learned[segment] for segment in segments]
        begins, lengths = numbers >> 32, numbers & 0xFFFFFFFF
        ends = np.cumsum(lengths)
        places = np.repeat(begins - ends + lengths, lengths)
        places += np.arange(len(places))
        return self._tokens.take(places), lengths

    def _learned(self, segments: list[bytes]) -> np.ndarray:
        """Numbers of new segments: where their tokens begin in `_tokens`, times 2^32, plus how many there are."""
        numbers, group, size = [], [], 0
        for segment in segments:
            group.append(segment)
            size += len(segment)
            if size > _BYTES_AT_ONCE:
                numbers.append(self._encoded(group))
                group, size = [], 0
        if group:
            numbers.append(self._encoded(group))
        joined = np.concatenate(numbers)
        self._store.add(segments, joined)
        return joined

    def _encoded(self, segments: list[bytes]) -> np.ndarray:
        """All in one call of the tokenizer, each behind a line end, which is one token whatever stands around it."""
        ids = np.array(self._tokenizer.encode((_LINE + _LINE.join(segments)).decode()), self._dtype)
        line_ends = np.append(np.flatnonzero(ids == self._line_end), len(ids))
        lengths = np.diff(line_ends) - 1
        assert len(lengths) == len(segments)
        ids = np.delete(ids[line_ends[0] :], line_ends[:-1] - line_ends[0])
        begins = self._used + np.cumsum(lengths) - lengths
        self._used += len(ids)
        if self._used > len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.empty(self._used, self._dtype)))
        self._tokens[self._used - len(ids) : self._used] = ids
        return (begins << 32) | lengths

    def _forget(self) -> None:
        """Keep the line end alone, which cannot be encoded as a line."""
        self._store.clear()
        self._tokens, self._used = np.empty(_TOKENS_KEPT, self._dtype), 1
        self._tokens[0] = self._line_end
        self._store.add([_LINE], np.array([1]))


def edge_classes(pieces: list[str]) -> tuple[bytes, bytes]:
    """Two tables of 256 bytes: text is cut between bytes x and y where `before[x] & behind[y]` is not 0.

    A bit is a rule: in front of spaces, in front of line ends, behind line ends, and in front of those signs that no
    piece has behind a letter or digit. It holds for all y of its kind and all x that stand in front of none of them in
    any piece.

    Raises:
        ValueError: pieces with a line end beside others, or with a space behind most letters.
    """
    stand_together = np.zeros((256, 256), bool)
    for piece in pieces:
        spelled = np.frombuffer(piece.replace(_SPACE, " ").encode(), np.uint8)
        stand_together[spelled[:-1], spelled[1:]] = True
        if "\n" in piece and piece != "\n":
            raise ValueError(f"piece {piece!r} spans a line end")
    letters, digits, signs = _codes(string.ascii_letters), _codes(string.digits), _codes(string.punctuation)
    if stand_together[letters, ord(" ")].mean() > 0.5:
        raise ValueError("pieces span spaces after most letters")
    signs = signs[~stand_together[np.concatenate((letters, digits))][:, signs].any(axis=0)]
    characters = np.delete(np.arange(256), slice(0x80, 0xC0))  # what else is a byte within one
    before, behind = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
    for bit, kind in enumerate((_codes(" "), _codes("\n"), signs)):
        before[~stand_together[:, kind].any(axis=1)] |= 1 << bit
        behind[kind] |= 1 << bit
    before[ord("\n")] |= 8
    behind[characters] |= 8
    return before.tobytes(), behind.tobytes()


def _codes(characters: str) -> np.ndarray:
    return np.frombuffer(characters.encode(), np.uint8)
