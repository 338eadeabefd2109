"""What a file of tiktoken ranks and the --tiktoken flags mean together: ids, pieces and how a text is cut."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path

from .data import DataConfig

_PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""By --tiktoken-pattern, as in megatron.core.tokenizers (0.16)."""


@dataclass(frozen=True)
class TiktokenVocabulary:
    """Ids in Megatron-LM's layout: the special tokens first, then the pieces."""

    special_tokens: tuple[str, ...]
    """Names in order of id: those of --tiktoken-special-tokens, then `<SPECIAL_n>`."""
    pieces: tuple[bytes, ...]
    """In order of rank; all 256 single bytes are among them."""
    pattern: str
    """Regular expression that cuts a text before bytes are merged."""

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.special_tokens) + len(self.pieces)

    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens by name."""
        return {name: number for number, name in enumerate(self.special_tokens)}

    def piece_ids(self) -> dict[bytes, int]:
        """Ids of the pieces: where two merges are possible, the lower id goes first."""
        return {piece: number for number, piece in enumerate(self.pieces, len(self.special_tokens))}


def read_tiktoken_file(path: Path, data: DataConfig) -> TiktokenVocabulary:
    """Read the ranks at `path` and lay them out as `data` says; its --vocab-size cuts them as Megatron-LM does.

    The file is a JSON list of {"rank", "token_bytes", ...} (Megatron-LM's) or lines of base64 and rank (OpenAI's).

    Raises:
        ValueError: special tokens, sizes or a file that do not fit together, with the reason.
    """
    reserved, names = data.tiktoken_num_special_tokens, list(data.tiktoken_special_tokens)
    if "</s>" not in names or len(set(names)) < len(names) or not len(names) <= reserved:
        raise ValueError(
            f"--tiktoken-special-tokens {' '.join(names)}: the names must be unique, include </s> (which ends "
            f"documents), and be at most --tiktoken-num-special-tokens {reserved}"
        )
    pieces = _pieces(path)
    if data.vocab_size is not None:
        if not 256 <= data.vocab_size - reserved <= len(pieces):
            raise ValueError(
                f"--vocab-size {data.vocab_size} is outside {reserved + 256}..{reserved + len(pieces)}: {reserved} "
                f"special tokens and 256 to {len(pieces)} ranks of {path}"
            )
        pieces = pieces[: data.vocab_size - reserved]
    if missing := {bytes([byte]) for byte in range(256)}.difference(pieces):
        raise ValueError(f"{path} has no rank for {len(missing)} of the 256 bytes, so not every text can be encoded")
    names += [f"<SPECIAL_{number}>" for number in range(len(names), reserved)]
    return TiktokenVocabulary(tuple(names), tuple(pieces), _PATTERNS[data.tiktoken_pattern])


def _pieces(path: Path) -> list[bytes]:
    """The pieces in order of rank. Raises ValueError for a file that does not hold ranks 0, 1, 2, ..."""
    blob = path.read_bytes()
    try:
        if blob.lstrip()[:1] == b"[":
            rows = [(base64.b64decode(row["token_bytes"], validate=True), int(row["rank"])) for row in json.loads(blob)]
        else:
            words = [line.split() for line in blob.splitlines() if line.strip()]
            rows = [(base64.b64decode(piece, validate=True), int(rank)) for piece, rank in words]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ValueError(
            f"{path} contains no tiktoken ranks (--tokenizer-model): neither a JSON list of rank and token_bytes nor "
            f"lines of base64 and rank ({error})"
        ) from error
    rows.sort(key=lambda row: row[1])
    if [rank for _, rank in rows] != list(range(len(rows))) or len({piece for piece, _ in rows}) < len(rows):
        raise ValueError(f"{path}: the ranks are not 0, 1, 2, ... with a piece each")
    return [piece for piece, _ in rows]
