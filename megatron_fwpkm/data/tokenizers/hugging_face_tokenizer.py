"""Hugging Face's `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .base import Tokenizer, is_plain_word, unencodable


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` (or the folder that holds it); the end-of-document token is the folder's `eos_token`.

    `file` is the tokenizer.json.
    """

    def __init__(self, path: Path) -> None:
        import tokenizers

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"{path} contains no tokenizer.json (--tokenizer-model)")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{file} is not a Hugging Face tokenizer: {error}") from error
        self.file = file
        self._tokenizer.encode_special_tokens = True  # a literal </s> in text stays text
        eod = self._special_id(file.parent, "eos_token")
        if eod is None:
            raise ValueError(
                f"{file} has no eos_token, which ends every document; set it in tokenizer_config.json or "
                f"special_tokens_map.json in the same folder"
            )
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        super().__init__(
            "HuggingFaceTokenizer", path, size, eod, self._special_id(file.parent, "bos_token"),
            [file.read_bytes(), str(eod).encode()],
        )  # fmt: skip

    def control_tokens(self) -> dict[str, int]:
        """Names and ids of the control tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def _special_id(self, folder: Path, name: str) -> int | None:
        for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
            if file.is_file():
                try:
                    value = json.loads(file.read_text(encoding="utf-8")).get(name)
                except (ValueError, AttributeError) as error:
                    raise ValueError(f"{file} (--tokenizer-model) is not a JSON object: {error}") from error
                token = value.get("content") if isinstance(value, dict) else value
                if token is not None:
                    return self._tokenizer.token_to_id(token)
        return None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS or EOD."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise unencodable(text, error) from error

    def normalized(self, text: str) -> str:
        """What is cut into words in place of `text`."""
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens give no text."""
        self._check_range(ids)
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)

    def whole_words(self) -> list[str]:
        """Words that are one piece after a space, in the order of their ids."""
        before = self.encode("a")
        pieces = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        words = [piece[1:] for piece, _ in pieces if piece[:1] in ("\u2581", "\u0120") and is_plain_word(piece[1:])]
        return [word for word in words if len(self.encode(f"a {word}")) == len(before) + 1]
