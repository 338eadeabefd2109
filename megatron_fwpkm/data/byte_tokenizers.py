"""Tokenizers whose pieces are strings of bytes: tiktoken ranks, and the bytes themselves. Free of torch."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path

from .tokenizers import Tokenizer, is_plain_word, unencodable

_PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""What cuts a text before pieces are merged, by --tiktoken-pattern, as in megatron.core.tokenizers (0.16)."""


class TikTokenizer(Tokenizer):
    """Ranks for the package tiktoken, in the layout of ids that Megatron-LM's tokenizer of this name has: special
    tokens first, named ones and then `<SPECIAL_n>`, and the ranks behind them.

    The file is a JSON list of {"rank", "token_bytes", ...} (Megatron-LM's) or lines of base64 and rank (OpenAI's).
    """

    def __init__(
        self,
        path: Path,
        *,
        pattern: str,
        special_tokens: Sequence[str],
        num_special_tokens: int,
        vocab_size: int | None,
    ) -> None:
        """`vocab_size` cuts the ranks as Megatron-LM does; None takes all."""
        try:
            import tiktoken
        except ImportError as error:
            raise ValueError(
                "--tokenizer-type TikTokenizer needs a package that is not installed: pip install tiktoken"
            ) from error
        names = list(special_tokens)
        if "</s>" not in names or len(set(names)) < len(names) or not len(names) <= num_special_tokens:
            raise ValueError(
                f"--tiktoken-special-tokens {' '.join(names)}: name each once, </s> (which ends documents) among them, "
                f"and no more than --tiktoken-num-special-tokens {num_special_tokens}"
            )
        blob = path.read_bytes()
        pieces = _pieces(path, blob)
        if vocab_size is not None:
            if not 256 <= vocab_size - num_special_tokens <= len(pieces):
                raise ValueError(
                    f"--vocab-size {vocab_size} is outside {num_special_tokens + 256}.."
                    f"{num_special_tokens + len(pieces)}: {num_special_tokens} special tokens and 256 to {len(pieces)} "
                    f"ranks of {path}"
                )
            pieces = pieces[: vocab_size - num_special_tokens]
        if missing := {bytes([byte]) for byte in range(256)}.difference(pieces):
            raise ValueError(
                f"{path} has no rank for {len(missing)} of the 256 bytes, so not every text can be encoded"
            )
        names += [f"<SPECIAL_{number}>" for number in range(len(names), num_special_tokens)]
        self._control = {name: number for number, name in enumerate(names)}
        self._pieces = pieces
        ranks = {piece: number for number, piece in enumerate(pieces, num_special_tokens)}
        self._encoding = tiktoken.Encoding(
            path.stem, pat_str=_PATTERNS[pattern], mergeable_ranks=ranks, special_tokens=self._control
        )
        parts = [blob, pattern.encode(), *(name.encode() for name in names), str(len(pieces)).encode()]
        size = num_special_tokens + len(pieces)
        super().__init__("TikTokenizer", path, size, self._control["</s>"], self._control.get("<s>"), parts)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        try:
            text.encode("utf-8")  # the library would put U+FFFD for what UTF-8 cannot hold
        except UnicodeEncodeError as error:
            raise unencodable(text, error) from error
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`. Bytes that are no text become U+FFFD."""
        self._check_range(ids)
        first = len(self._control)
        return b"".join(self._pieces[token - first] for token in ids if token >= first).decode("utf-8", "replace")

    def control_tokens(self) -> dict[str, int]:
        """See `Tokenizer.control_tokens`."""
        return dict(self._control)

    def whole_words(self) -> list[str]:
        """See `Tokenizer.whole_words`."""
        words = [piece[1:].decode("utf-8", "replace") for piece in self._pieces if piece[:1] == b" "]
        before = len(self.encode("a"))
        return [word for word in words if is_plain_word(word) and len(self.encode(f"a {word}")) == before + 1]


class ByteLevelTokenizer(Tokenizer):
    """The bytes of UTF-8 are the ids; 256 ends documents and 257 begins them.

    megatron.core's tokenizer of this name takes the ids 0 and 1 for that, which are also the bytes 0 and 1 of a text.
    """

    def __init__(self) -> None:
        super().__init__("ByteLevelTokenizer", None, 258, 256, 257, [])

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        try:
            return list(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise unencodable(text, error) from error

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`. Bytes that are no text become U+FFFD."""
        self._check_range(ids)
        return bytes(int(token) for token in ids if token < 256).decode("utf-8", "replace")

    def whole_words(self) -> list[str]:
        """None: a word is as many pieces as it has bytes."""
        return []


def _pieces(path: Path, blob: bytes) -> list[bytes]:
    """The pieces in order of rank. Raises ValueError for a file that does not hold ranks 0, 1, 2, ..."""
    try:
        if blob.lstrip()[:1] == b"[":
            rows = [(base64.b64decode(row["token_bytes"], validate=True), int(row["rank"])) for row in json.loads(blob)]
        else:
            words = [line.split() for line in blob.splitlines() if line.strip()]
            rows = [(base64.b64decode(piece, validate=True), int(rank)) for piece, rank in words]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ValueError(
            f"{path} holds no tiktoken ranks (--tokenizer-model): neither a JSON list of rank and token_bytes nor "
            f"lines of base64 and rank ({error})"
        ) from error
    rows.sort(key=lambda row: row[1])
    if [rank for _, rank in rows] != list(range(len(rows))) or len({piece for piece, _ in rows}) < len(rows):
        raise ValueError(f"{path}: the ranks are not 0, 1, 2, ... with a piece each")
    return [piece for piece, _ in rows]
