"""Tokenizers whose pieces are strings of bytes: tiktoken ranks, and the bytes themselves. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...config import DataConfig
from ...config.tiktoken_file import read_tiktoken_file
from .base import Tokenizer, is_plain_word, unencodable


class TikTokenizer(Tokenizer):
    """Ranks for the package tiktoken, in the layout of ids that Megatron-LM's tokenizer of this name has: special
    tokens first, named ones and then `<SPECIAL_n>`, and the ranks behind them.

    `pieces` are the ranks' bytes, and `pattern` is the --tiktoken-pattern.
    """

    def __init__(self, path: Path, data: DataConfig) -> None:
        """Read the ranks of a file; `config.tiktoken_file.read_tiktoken_file` says what is refused."""
        try:
            import tiktoken
        except ImportError as error:
            raise ValueError(
                "--tokenizer-type TikTokenizer requires the package tiktoken, which is not installed: pip install "
                "tiktoken"
            ) from error
        vocabulary = read_tiktoken_file(path, data)
        self._control, self.pieces = vocabulary.special_ids(), vocabulary.pieces
        self.pattern = data.tiktoken_pattern
        self._encoding = tiktoken.Encoding(
            path.stem,
            pat_str=vocabulary.pattern,
            mergeable_ranks=vocabulary.piece_ids(),
            special_tokens=self._control,
        )
        parts = [
            path.read_bytes(), data.tiktoken_pattern.encode(), *(name.encode() for name in self._control),
            str(len(self.pieces)).encode(),
        ]  # fmt: skip
        eod, bos = self._control["</s>"], self._control.get("<s>")
        super().__init__("TikTokenizer", path, vocabulary.size, eod, bos, parts)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS or EOD."""
        try:
            text.encode("utf-8")  # the library would put U+FFFD for what UTF-8 cannot hold
        except UnicodeEncodeError as error:
            raise unencodable(text, error) from error
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are no text become U+FFFD."""
        self._check_range(ids)
        first = len(self._control)
        return b"".join(self.pieces[token - first] for token in ids if token >= first).decode("utf-8", "replace")

    def control_tokens(self) -> dict[str, int]:
        """Names and ids of the control tokens."""
        return dict(self._control)

    def whole_words(self) -> list[str]:
        """Words that are one piece after a space, in the order of their ids."""
        words = [piece[1:].decode("utf-8", "replace") for piece in self.pieces if piece[:1] == b" "]
        before = len(self.encode("a"))
        return [word for word in words if is_plain_word(word) and len(self.encode(f"a {word}")) == before + 1]


class ByteLevelTokenizer(Tokenizer):
    """The bytes of UTF-8 are the ids; 256 ends documents and 257 begins them.

    megatron.core's tokenizer of this name takes the ids 0 and 1 for that, which are also the bytes 0 and 1 of a text.
    """

    def __init__(self) -> None:
        super().__init__("ByteLevelTokenizer", None, 258, 256, 257, [])

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS or EOD."""
        try:
            return list(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise unencodable(text, error) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are no text become U+FFFD."""
        self._check_range(ids)
        return bytes(int(token) for token in ids if token < 256).decode("utf-8", "replace")

    def whole_words(self) -> list[str]:
        """None: a word is as many pieces as it has bytes."""
        return []
