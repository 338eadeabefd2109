"""Faster ways to the very tokens that the plain tokenizer gives. Free of torch.

Two ways, both for SentencePiece BPE: the package gigatoken (an optional extra, one version), and a cache of segments
between which no piece reaches. Whatever is chosen is compared with the plain tokenizer on every run: on texts meant to
break it, on the first documents of every process, and on one document of every block after that.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np

from .indexed_format import token_dtype
from .tokenizers import SentencePieceTokenizer, Tokenizer

Accelerator = Literal["auto", "gigatoken", "segments", "none"]
DocumentsEncoder = Callable[[list[str]], list[bytes]]
"""Texts to their tokens as bytes in the dataset's dtype, a text each, without BOS and EOD."""

GIGATOKEN_VERSION = "0.10.0"
PROBES = (
    "word", " a  b   c ", "\n", "\n\n  x\n y \n", "tab\t\ttab \t x", "1234 5.6e-7 0x1F", "</s> <s> <unk> [INST] x",
    "\u4f60\u597d \U0001f600\U0001f600 \u00e9 e\u0301 \ufb01 \uff21", "a\u2581b \u2581\u2581",
    "\x00 \x01\u2028\u00a0\u3000 \r\n x\r", "x" * 300, " " * 70 + "\n" * 70, " ", "  ", "\n \n  \n", "a \n", "a  \n  b",
    "<0x0A> <0xE2>", "don't can't I'll WE'VE", "\ufeff\u200b\u200d", ".,;:!?()[]{}<>/\\|`~@#$%^&*",
)  # fmt: skip
"""Texts at which encoders have been seen to differ."""
_CHECKED_AT_FIRST = 100
_CACHE_ENTRIES = 300_000
_LONGEST_CACHED = 48
_SPACE = "\u2581"


class AcceleratorMismatch(ValueError):
    """The accelerator gave other tokens than the plain tokenizer."""


def choose_accelerator(tokenizer: Tokenizer, wanted: Accelerator) -> tuple[Accelerator, str]:
    """The accelerator to use and, where it is not the wanted one, why, in words. `auto` takes the fastest that can be
    used and says nothing."""
    reasons = []
    for name in _CANDIDATES[wanted]:
        try:
            _check(_BUILDERS[name](tokenizer), tokenizer, PROBES)
        except (ValueError, ImportError) as error:
            reasons.append(f"{name}: {error}")
        else:
            used: Accelerator = "gigatoken" if name == "gigatoken" else "segments"
            return used, "" if wanted in ("auto", name) else f"{'; '.join(reasons)}; using {name} instead"
    return "none", "" if wanted in ("auto", "none") else f"{'; '.join(reasons)}; using the plain tokenizer"


def build_encoder(tokenizer: Tokenizer, accelerator: Accelerator) -> DocumentsEncoder:
    """The way of encoding that `choose_accelerator` chose, checked as it goes. It raises AcceleratorMismatch."""
    plain = partial(_plain, tokenizer)
    return _checked(_BUILDERS[accelerator](tokenizer), tokenizer) if accelerator != "none" else plain


def _plain(tokenizer: Tokenizer, texts: list[str]) -> list[bytes]:
    dtype = token_dtype(tokenizer.vocab_size)
    return [np.array(tokenizer.encode(text), dtype=dtype).tobytes() for text in texts]


def _check(encode: DocumentsEncoder, tokenizer: Tokenizer, texts: tuple[str, ...] | list[str]) -> None:
    for text, found, expected in zip(texts, encode(list(texts)), _plain(tokenizer, list(texts)), strict=True):
        if found != expected:
            raise AcceleratorMismatch(f"other tokens than the plain tokenizer for {text[:60]!r}")


def _checked(encode: DocumentsEncoder, tokenizer: Tokenizer) -> DocumentsEncoder:
    left = _CHECKED_AT_FIRST

    def checked(texts: list[str]) -> list[bytes]:
        nonlocal left
        documents = encode(texts)
        first = min(left, len(texts))
        left -= first
        numbers = {*range(first), len(texts[0]) * 31 % len(texts)} if texts else set()
        for number in numbers:
            if documents[number] != _plain(tokenizer, [texts[number]])[0]:
                raise AcceleratorMismatch(f"other tokens than the plain tokenizer for {texts[number][:60]!r}")
        return documents

    return checked


def _gigatoken(tokenizer: Tokenizer) -> DocumentsEncoder:
    """Raises ValueError when the package or the tokenizer is not the right one."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ValueError("works with SentencePieceTokenizer only")
    try:
        found = importlib.metadata.version("gigatoken")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(f"not installed (pip install gigatoken=={GIGATOKEN_VERSION})") from error
    if found != GIGATOKEN_VERSION:
        raise ValueError(f"version {found} is installed, {GIGATOKEN_VERSION} is the one that was tested")
    import awkward
    import gigatoken
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json as to_json

    assert tokenizer.path is not None
    try:
        description = json.loads(to_json(tokenizer.path.read_bytes()))
        description["added_tokens"] = []  # or a literal </s> in text would become the control token
        backend = gigatoken.Tokenizer.from_json(json.dumps(description))._backend
    except Exception as error:  # a young library: whatever it says, the tokens come the plain way
        raise ValueError(f"cannot load {tokenizer.path}: {error}") from error
    dtype = token_dtype(tokenizer.vocab_size)

    def encode(texts: list[str]) -> list[bytes]:
        if not texts:
            return []
        ids = backend.encode_batch(texts, parallel=False)
        flat = np.asarray(awkward.flatten(ids)).astype(dtype).tobytes()
        ends = (np.cumsum(np.asarray(awkward.num(ids, axis=1))) * dtype.itemsize).tolist()
        return [flat[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    return encode


class _Segments(dict[str, bytes]):
    """Tokens of segments. A segment is the text behind one space up to the next, and a line end begins one too: the
    key is that text, with U+2581 for further spaces."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._space = tokenizer.encode("\n")[0]

    def __missing__(self, key: str) -> bytes:
        if key.startswith("\n"):  # no space here: the one that the tokenizer puts in front is taken away
            ids = self._tokenizer.encode(key)[1:]
        elif key:
            ids = self._tokenizer.encode(key.replace(_SPACE, " "))
        else:
            ids = [self._space]
        found = np.array(ids, self._dtype).tobytes()
        if len(self) < _CACHE_ENTRIES and len(key) <= _LONGEST_CACHED:
            self[key] = found
        return found


def _segments(tokenizer: Tokenizer) -> DocumentsEncoder:
    """Exact where no piece has a space behind another character or holds a line end beside others, for then merges
    never reach over the edge of a segment. Raises ValueError for other tokenizers."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ValueError("works with SentencePieceTokenizer only")
    assert tokenizer.path is not None
    problem = _not_separable(tokenizer, tokenizer.path.read_bytes())
    if problem:
        raise ValueError(problem)
    cache = _Segments(tokenizer)
    runs = re.compile("  +")
    look_up = cache.__getitem__

    def run(match: re.Match[str]) -> str:
        return " " + _SPACE * (match.end() - match.start() - 1)

    def encode(texts: list[str]) -> list[bytes]:
        documents = []
        for text in texts:
            if _SPACE in text:
                documents += _plain(tokenizer, [text])
                continue
            if "  " in text or text.startswith(" "):
                text = runs.sub(run, " " + text)[1:]  # the tokenizer's own space in front belongs to the first run
            documents.append(b"".join(map(look_up, text.replace("\n", " \n").split(" "))) if text else b"")
        return documents

    return encode


def _not_separable(tokenizer: SentencePieceTokenizer, model: bytes) -> str:
    """Why texts cannot be encoded segment by segment; "" when they can."""
    fields: dict[int, list[Any]] = {}
    for number, value in _fields(model):
        fields.setdefault(number, []).append(value)
    trainer = dict(_fields(fields.get(2, [b""])[-1]))
    normalizer = dict(_fields(fields.get(3, [b""])[-1]))
    if trainer.get(3, 1) != 2:
        return "the model is not BPE"
    if not trainer.get(35, 0) or trainer.get(24, 0):
        return "the model has no byte fallback, or puts spaces behind words"
    if normalizer.get(2) or normalizer.get(4, 1) or not normalizer.get(3, 1) or not normalizer.get(5, 1):
        return "the model normalizes text"
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.piece(token)
        if re.search(f"[^{_SPACE}]{_SPACE}", piece) or ("\n" in piece and piece != "\n"):
            return f"piece {piece!r} reaches over a space or a line end"
    return ""


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


_CANDIDATES: dict[Accelerator, tuple[str, ...]] = {
    "auto": ("gigatoken", "segments"), "gigatoken": ("gigatoken", "segments"), "segments": ("segments",), "none": ()
}  # fmt: skip
_BUILDERS: dict[str, Callable[[Tokenizer], DocumentsEncoder]] = {"gigatoken": _gigatoken, "segments": _segments}
