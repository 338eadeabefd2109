"""Faster ways to the very tokens that the plain tokenizer gives. Free of torch.

Two ways, both for SentencePiece BPE: the package gigatoken (an optional extra, one version), and a cache of segments
between which no piece reaches. Whatever is chosen is compared with the plain tokenizer on every run: on texts meant to
break it, on the first documents of every process, and on one document of every block after that.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, Literal

import numpy as np

from .indexed_format import token_dtype
from .segments import SegmentEncoder, model_settings
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
_PIECE = b"\n\x03\n\x01x"
"""A piece as a SentencePiece model has it."""
_CHECKED_AT_FIRST = 100
_TEXT_PER_LOAD = 100_000_000
"""Characters after which gigatoken, whose cache has no bounds, is loaded anew: 0.04 s."""
_CACHE_BYTES, _LEAST_TEXT_PER_LOAD = 140_000_000, 4_000_000
"""Growth of this process after which that comes sooner, but not before so many characters: text of ever new words fills
10 bytes a character."""


class AcceleratorMismatch(ValueError):
    """The accelerator gave other tokens than the plain tokenizer."""


def choose_accelerator(tokenizer: Tokenizer, wanted: Accelerator) -> tuple[Accelerator, DocumentsEncoder, str]:
    """The accelerator to use, the way of encoding, checked as it goes (it raises AcceleratorMismatch), and, where it is
    not the wanted one, why, in words. `auto` takes the fastest that can be used and says nothing."""
    reasons = []
    for name in _CANDIDATES[wanted]:
        try:
            encode = _BUILDERS[name](tokenizer)
            _check(encode, tokenizer, PROBES)
        except (ValueError, ImportError) as error:
            reasons.append(f"{name}: {error}")
        else:
            used: Accelerator = "gigatoken" if name == "gigatoken" else "segments"
            notice = "" if wanted in ("auto", name) else f"{'; '.join(reasons)}; using {name} instead"
            return used, _checked(encode, tokenizer), notice
    notice = "" if wanted in ("auto", "none") else f"{'; '.join(reasons)}; using the plain tokenizer"
    return "none", build_encoder(tokenizer, "none"), notice


def build_encoder(tokenizer: Tokenizer, accelerator: Accelerator) -> DocumentsEncoder:
    """The way of encoding that `choose_accelerator` chose, for another process."""
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
    from gigatoken.gigatoken_rs import load_hf_json

    try:
        load = partial(load_hf_json, json.dumps(gigatoken_description(tokenizer), ensure_ascii=False))
        encode_one = load().encode
    except Exception as error:  # a young library: whatever it says, the tokens come the plain way
        raise ValueError(f"cannot load {tokenizer.path}: {error}") from error
    dtype = token_dtype(tokenizer.vocab_size)
    since, bytes_at_first = 0, _resident_bytes()

    def encode(texts: list[str]) -> list[bytes]:
        # A text at a time: the library keeps what it has met, which encode_batch would look for anew in every call.
        # It never forgets, so it is loaded again now and then.
        nonlocal encode_one, since
        grown = since > _LEAST_TEXT_PER_LOAD and _resident_bytes() - bytes_at_first > _CACHE_BYTES
        if grown or since > _TEXT_PER_LOAD:
            del encode_one  # before there is another
            encode_one, since = load().encode, 0
        since += sum(map(len, texts))
        return [encode_one(text).astype(dtype).tobytes() for text in texts]

    return encode


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def gigatoken_description(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The model as gigatoken reads it. Its own conversion would take 0.3 s, so it is given the settings with one piece;
    vocabulary and merges, which are every two pieces that make one, the best first, are put in here."""
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    assert tokenizer.path is not None
    settings = model_settings(tokenizer.path.read_bytes())
    description: dict[str, Any] = json.loads(sentencepiece_to_tokenizer_json(_PIECE + settings))
    description["added_tokens"] = []  # or a literal </s> in text would become the control token
    scores = dict(zip(tokenizer.pieces(), tokenizer.scores(), strict=True))
    merges = [
        (score, at, len(piece) - at, piece)
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
    merges.sort(key=itemgetter(0, 1, 2), reverse=True)  # equal ones stay in order of id
    description["model"]["vocab"] = {piece: number for number, piece in enumerate(tokenizer.pieces())}
    description["model"]["merges"] = [(piece[:at], piece[at:]) for _, at, _, piece in merges]
    return description


def _segments(tokenizer: Tokenizer) -> DocumentsEncoder:
    """Raises ValueError for tokenizers that cannot be cut."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ValueError("works with SentencePieceTokenizer only")
    return SegmentEncoder(tokenizer)


_CANDIDATES: dict[Accelerator, tuple[str, ...]] = {
    "auto": ("gigatoken", "segments"), "gigatoken": ("gigatoken", "segments"), "segments": ("segments",), "none": ()
}  # fmt: skip
_BUILDERS: dict[str, Callable[[Tokenizer], DocumentsEncoder]] = {"gigatoken": _gigatoken, "segments": _segments}
