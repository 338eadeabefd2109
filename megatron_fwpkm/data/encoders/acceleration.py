"""Faster ways to the very tokens that the plain tokenizer gives. Free of torch.

Two ways: the package gigatoken (an optional extra, one version), for SentencePiece BPE and byte-level BPE, and a cache
of segments between which no piece reaches, for SentencePiece BPE. Whatever is chosen is compared with the plain
tokenizer on every run: on texts meant to break it, on the first documents of every process, and on one document of
every block after that, as long as this is a small part of all text: whole books are compared now and then only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..indexed.indexed_format import token_dtype
from ..tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, TikTokenizer, Tokenizer
from . import Accelerator
from .byte_level_encoder import ByteLevelEncoder
from .gigatoken_encoder import GigatokenEncoder
from .segments import SegmentEncoder

DocumentsEncoder = Callable[[list[str]], list[bytes]]
"""Texts to their tokens as bytes in the dataset's dtype, a text each, without BOS and EOD."""

PROBES = (
    "word", " a  b   c ", "\n", "\n\n  x\n y \n", "tab\t\ttab \t x", "1234 5.6e-7 0x1F", "</s> <s> <unk> [INST] x",
    "\u4f60\u597d \U0001f600\U0001f600 \u00e9 e\u0301 \ufb01 \uff21", "a\u2581b \u2581\u2581 \u2581",
    "\x00 \x01\u2028\u00a0\u3000 \r\n x\r", "x" * 300, " " * 70 + "\n" * 70, " ", "  ", "\n \n  \n", "a \n", "a  \n  b",
    "<0x0A> <0xE2>", "don't can't I'll WE'VE", "\ufeff\u200b\u200d", ".,;:!?()[]{}<>/\\|`~@#$%^&*",
)  # fmt: skip
"""Texts at which encoders have been seen to differ."""
_CHECKED_AT_FIRST, _CHARACTERS_AT_FIRST = 100, 1 << 20
_CHECKED_SHARE = 1 / 64
"""Of the characters behind those: the plain tokenizer takes as long for them as gigatoken for a tenth of the text."""

_ALWAYS_PLAIN = ("NullTokenizer", "ByteLevelTokenizer")
"""Kinds of tokenizers for which there is nothing to say."""


class AcceleratorMismatch(ValueError):
    """The accelerator gave other tokens than the plain tokenizer, or none."""


def choose_accelerator(tokenizer: Tokenizer, wanted: Accelerator) -> tuple[Accelerator, DocumentsEncoder, str]:
    """The accelerator to use, the way of encoding, checked as it goes (it raises AcceleratorMismatch), and, where it is
    not the wanted one, why, in words. `auto` takes the fastest that can be used and says nothing."""
    reasons = []
    for name in _CANDIDATES[wanted]:
        if name == "segments" and wanted != "segments" and not isinstance(tokenizer, SentencePieceTokenizer):
            continue  # nobody asked why this is not used
        try:
            encode = _built(name, tokenizer)
            _check(encode, tokenizer, PROBES)
        except (ValueError, ImportError) as error:
            reasons.append(f"{name}: {error}")
        else:
            used: Accelerator = "gigatoken" if name == "gigatoken" else "segments"
            notice = "" if wanted in ("auto", name) else f"{'; '.join(reasons)}; using {name} instead"
            return used, _checked(encode, tokenizer), notice
    silent = wanted == "none" or (wanted == "auto" and tokenizer.kind in _ALWAYS_PLAIN)
    notice = "" if silent else f"{'; '.join(reasons)}; using the plain tokenizer"
    return "none", build_encoder(tokenizer, "none"), notice


def build_encoder(tokenizer: Tokenizer, accelerator: Accelerator) -> DocumentsEncoder:
    """The way of encoding that `choose_accelerator` chose, for another process."""
    plain = partial(_plain, tokenizer)
    return _checked(_built(accelerator, tokenizer), tokenizer) if accelerator != "none" else plain


def _built(name: str, tokenizer: Tokenizer) -> DocumentsEncoder:
    encode = _BUILDERS[name](tokenizer)

    def guarded(texts: list[str]) -> list[bytes]:
        """Encode, with every failure of the library as a mismatch."""
        try:
            return encode(texts)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # where Rust gives up, it raises no Exception
            raise AcceleratorMismatch(f"it failed with {error!r}") from error

    return guarded


def _plain(tokenizer: Tokenizer, texts: list[str]) -> list[bytes]:
    dtype = token_dtype(tokenizer.vocab_size)
    return [np.array(tokenizer.encode(text), dtype=dtype).tobytes() for text in texts]


def _check(encode: DocumentsEncoder, tokenizer: Tokenizer, texts: tuple[str, ...] | list[str]) -> None:
    for text, found, expected in zip(texts, encode(list(texts)), _plain(tokenizer, list(texts)), strict=True):
        if found != expected:
            raise AcceleratorMismatch(f"its tokens differ from the plain tokenizer's for {text[:60]!r}")


def _checked(encode: DocumentsEncoder, tokenizer: Tokenizer) -> DocumentsEncoder:
    left, room = _CHECKED_AT_FIRST, float(_CHARACTERS_AT_FIRST)

    def checked(texts: list[str]) -> list[bytes]:
        """Encode, and compare some documents with the tokenizer."""
        nonlocal left, room
        documents = encode(texts)
        first = min(left, len(texts))
        left -= first
        room += sum(map(len, texts)) * _CHECKED_SHARE
        for number in {*range(first), len(texts[0]) * 31 % len(texts)} if texts else ():
            if len(texts[number]) > room:
                continue
            room -= len(texts[number])
            if documents[number] != _plain(tokenizer, [texts[number]])[0]:
                raise AcceleratorMismatch(f"its tokens differ from the plain tokenizer's for {texts[number][:60]!r}")
        return documents

    return checked


def _gigatoken(tokenizer: Tokenizer) -> DocumentsEncoder:
    if isinstance(tokenizer, SentencePieceTokenizer):
        return GigatokenEncoder(tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer | TikTokenizer):
        return ByteLevelEncoder(tokenizer)
    raise ValueError(f"{tokenizer.kind} is not supported")


def _segments(tokenizer: Tokenizer) -> DocumentsEncoder:
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ValueError("only SentencePieceTokenizer is supported")
    return SegmentEncoder(tokenizer)


_CANDIDATES: dict[Accelerator, tuple[str, ...]] = {
    "auto": ("gigatoken", "segments"), "gigatoken": ("gigatoken", "segments"), "segments": ("segments",), "none": ()
}  # fmt: skip
_BUILDERS: dict[str, Callable[[Tokenizer], DocumentsEncoder]] = {
    "gigatoken": _gigatoken,
    "segments": _segments,
}
