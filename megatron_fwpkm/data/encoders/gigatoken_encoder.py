"""SentencePiece BPE by the package gigatoken (an optional extra, one version). Free of torch.

It encodes words and remembers them. Of its words a new one begins at a space and in front of . , " ) ; : ! and ?, where
no piece reaches over. Nothing asks whether a byte *is* a question mark: text and pieces in which the same bytes have
changed places have the same tokens. So line ends and ( _ / -, which stand in front of words far more often, change
places with five of those signs, and there are 40 percent fewer words to remember, and shorter ones.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from operator import itemgetter
from typing import Any

from ..indexed.indexed_format import token_dtype
from ..tokenizers import SentencePieceTokenizer
from .gigatoken_library import BoundedGigatoken, check_gigatoken, gigatoken_loading
from .sentencepiece_model import NORMAL, UNUSED, USER_DEFINED, check_keeps_text, piece_kinds, split_model

EXCHANGED = str.maketrans('\n(_/-";:!?', '";:!?\n(_/-')
"""Characters that change places, in pairs."""
_EXCHANGED_BYTES = bytes(EXCHANGED.get(byte, byte) for byte in range(256))
_PIECE = b"\n\x03\n\x01x"
"""A piece as a SentencePiece model has it."""
_CACHE_BYTES, _TEXT_PER_LOAD = 140_000_000, 100_000_000
"""What of memory and text comes before the library is loaded anew: 0.04 s."""


class GigatokenEncoder:
    """Texts to their tokens as bytes in the dataset's dtype."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        """Raises ValueError when the package is not there in the right version or cannot take the tokenizer."""
        check_model(tokenizer)
        check_gigatoken()
        from gigatoken.gigatoken_rs import load_hf_json

        with gigatoken_loading():
            description = json.dumps(exchanged_description(tokenizer), ensure_ascii=False)
        load = partial(load_hf_json, description)
        self._encode = BoundedGigatoken(load, cache_bytes=_CACHE_BYTES, text_per_load=_TEXT_PER_LOAD)
        self._dtype = token_dtype(tokenizer.vocab_size)

    def __call__(self, texts: list[str]) -> list[bytes]:
        """Tokens of each text."""
        data = [text.encode().translate(_EXCHANGED_BYTES) for text in texts]
        return [ids.astype(self._dtype).tobytes() for ids in self._encode(data)]


def check_model(tokenizer: SentencePieceTokenizer) -> None:
    """Raises ValueError for a model that gigatoken would take, but not encode as SentencePiece does."""
    assert tokenizer.path is not None
    messages, settings = split_model(tokenizer.path.read_bytes())
    check_keeps_text(settings)  # normalizing could make or take away a character that has changed places
    kinds = piece_kinds(messages)
    if USER_DEFINED in kinds:
        raise ValueError("the model has user-defined pieces, which gigatoken does not support")
    if UNUSED in kinds:
        raise ValueError("the model has unused pieces, which gigatoken would not split further")
    ranked = zip(tokenizer.pieces(), tokenizer.scores(), kinds, strict=True)
    normal = {piece: score for piece, score, kind in ranked if kind == NORMAL}
    if alone := set("".join(normal)).difference(normal):
        raise ValueError(f"the model has pieces with {min(alone)!r}, but gigatoken also needs a piece for it alone")
    # Of runs of one sign, as Llama's spaces are, both make the leftmost as long as they can.
    merged = Counter(score for piece, score in normal.items() if len(piece) > 1)
    if tied := [piece for piece, score in normal.items() if merged[score] > 1 and len(set(piece)) > 1]:
        raise ValueError(
            f"the model has another piece with the score of {tied[0]!r}; gigatoken would not merge the leftmost first"
        )


def gigatoken_description(tokenizer: SentencePieceTokenizer, pieces: list[str]) -> dict[str, Any]:
    """The model as gigatoken reads it, with `pieces` for the tokenizer's own. Its own conversion would take 0.3 s, so
    it is given the settings with one piece; vocabulary and merges, which are every two normal pieces that make one, the
    best first, are put in here."""
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    assert tokenizer.path is not None
    messages, settings = split_model(tokenizer.path.read_bytes())
    description: dict[str, Any] = json.loads(sentencepiece_to_tokenizer_json(_PIECE + settings))
    description["added_tokens"] = []  # or a literal </s> in text would become the control token
    ranked = zip(pieces, tokenizer.scores(), piece_kinds(messages), strict=True)
    scores = {piece: score for piece, score, kind in ranked if kind == NORMAL}
    merges = [
        (score, at, len(piece) - at, piece)
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
    merges.sort(key=itemgetter(0, 1, 2), reverse=True)  # equal ones stay in order of id
    description["model"]["vocab"] = {piece: number for number, piece in enumerate(pieces)}
    description["model"]["merges"] = [(piece[:at], piece[at:]) for _, at, _, piece in merges]
    return description


def exchanged_description(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The model for text in which the characters of `EXCHANGED` have changed places."""
    pieces = tokenizer.pieces()
    description = gigatoken_description(tokenizer, [piece.translate(EXCHANGED) for piece in pieces])
    model = description["model"]
    model["unk_token"] = (model["unk_token"] or "").translate(EXCHANGED) or None
    for code, other in EXCHANGED.items():
        byte = f"<0x{code:02X}>"
        if chr(code) not in pieces and byte in pieces:  # or it would fall back to the byte of the other
            model["vocab"][chr(other)] = pieces.index(byte)
    return description
