"""Tokenizers behind one small interface. Free of torch.

`build_tokenizer(DataConfig)` is the only way in. Three rules hold for every kind: text is text (a literal `</s>` never
becomes a control token), the end-of-document token is known or the tokenizer is refused, and `identity` changes
whenever the ids of any text could. The objects also satisfy what `megatron.core` datasets ask of a tokenizer
(`vocab_size`, `eod`, `unique_identifiers`); they have no `pad` on purpose, so that no token of the text is ever taken
for padding.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.config.data import MOST_NUMBERS

_WORD = re.compile(r"[^\W\d_]{4,}")


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes: `kind` (the --tokenizer-type), `path` (file or folder it came from, None for NullTokenizer),
    `vocab_size`, `eod` (id of the end-of-document token), `bos` (id or None), `identity` (hex SHA-256 of everything
    that decides the ids).
    """

    def __init__(
        self, kind: str, path: Path | None, vocab_size: int, eod: int, bos: int | None, identity_parts: Iterable[bytes]
    ) -> None:
        self.kind = kind
        self.path = path
        self.vocab_size = vocab_size
        self.eod = eod
        self.bos = bos
        digest = hashlib.sha256(kind.encode())
        for part in identity_parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        self.identity = digest.hexdigest()

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        """What `megatron.core` hashes into the name of a dataset's index cache."""
        return {"class": self.kind, "identity": self.identity}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS or EOD. Raises ValueError where the text cannot be encoded."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control tokens give no text."""

    @abstractmethod
    def whole_words(self) -> list[str]:
        """Words that are exactly one piece when they follow a space in a sentence, in order of id (for BPE about the
        most
        frequent first). For text tokenizers: lower-case words of at least four letters."""

    def control_tokens(self) -> dict[str, int]:
        """Control tokens by the text that spells them; none by default."""
        return {}

    def _check_range(self, ids: Sequence[int]) -> None:
        if len(ids) and not (0 <= min(ids) and max(ids) < self.vocab_size):
            raise ValueError(f"token ids {min(ids)}..{max(ids)} are outside the tokenizer's {self.vocab_size} pieces")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `.model` file; the end-of-document token is its `</s>`."""

    def __init__(self, path: Path) -> None:
        import sentencepiece

        blob = path.read_bytes()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a SentencePiece model (--tokenizer-model): {error}") from error
        eod, bos = self._processor.eos_id(), self._processor.bos_id()
        if eod < 0:
            raise ValueError(f"{path} has no </s> piece, so documents cannot be ended; train a tokenizer with one")
        size = self._processor.get_piece_size()
        super().__init__("SentencePieceTokenizer", path, size, eod, bos if bos >= 0 else None, [blob])

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`. SentencePiece never matches control pieces in text."""
        try:
            return self._processor.encode(text)
        except (RuntimeError, UnicodeEncodeError) as error:
            raise unencodable(text, error) from error

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        self._check_range(ids)
        return self._processor.decode([int(token) for token in ids])

    def whole_words(self) -> list[str]:
        """See `Tokenizer.whole_words`."""
        pieces = (self._processor.id_to_piece(token) for token in range(self.vocab_size))
        words = [piece[1:] for piece in pieces if piece[:1] == "\u2581" and is_plain_word(piece[1:])]
        return [word for word in words if len(self.encode(word)) == 1]

    def control_tokens(self) -> dict[str, int]:
        """See `Tokenizer.control_tokens`."""
        control = [token for token in range(self.vocab_size) if self._processor.is_control(token)]
        return {self.piece(token): token for token in control}

    def piece(self, token: int) -> str:
        """The piece with this id as SentencePiece writes it, a space as U+2581."""
        return str(self._processor.id_to_piece(token))

    def pieces(self) -> list[str]:
        """All pieces in order of id, as `piece` gives them."""
        found: list[str] = self._processor.id_to_piece(list(range(self.vocab_size)))
        return found

    def scores(self) -> list[float]:
        """The score of every piece in order of id: the higher, the sooner it is merged."""
        found: list[float] = self._processor.get_score(list(range(self.vocab_size)))
        return found

    def is_byte(self, token: int) -> bool:
        """Whether `token` is one of the 256 byte-fallback pieces."""
        return bool(self._processor.is_byte(token))


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` (or the folder that holds it); the end-of-document token is the folder's `eos_token`."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"{path} holds no tokenizer.json (--tokenizer-model)")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{file} is not a Hugging Face tokenizer: {error}") from error
        self._tokenizer.encode_special_tokens = True  # a literal </s> in text stays text
        eod = self._special_id(file.parent, "eos_token")
        if eod is None:
            raise ValueError(
                f"no eos_token for {file}: name it in tokenizer_config.json or special_tokens_map.json beside it; "
                f"it ends every document"
            )
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        super().__init__(
            "HuggingFaceTokenizer", path, size, eod, self._special_id(file.parent, "bos_token"),
            [file.read_bytes(), str(eod).encode()],
        )  # fmt: skip

    def control_tokens(self) -> dict[str, int]:
        """See `Tokenizer.control_tokens`."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def _special_id(self, folder: Path, name: str) -> int | None:
        for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
            if file.is_file():
                try:
                    value = json.loads(file.read_text(encoding="utf-8")).get(name)
                except (ValueError, AttributeError) as error:
                    raise ValueError(f"{file} (--tokenizer-model) is no JSON object: {error}") from error
                token = value.get("content") if isinstance(value, dict) else value
                if token is not None:
                    return self._tokenizer.token_to_id(token)
        return None

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise unencodable(text, error) from error

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        self._check_range(ids)
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)

    def whole_words(self) -> list[str]:
        """See `Tokenizer.whole_words`."""
        before = self.encode("a")
        pieces = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        words = [piece[1:] for piece, _ in pieces if piece[:1] in ("\u2581", "\u0120") and is_plain_word(piece[1:])]
        return [word for word in words if len(self.encode(f"a {word}")) == len(before) + 1]


class NullTokenizer(Tokenizer):
    """Text is numbers separated by white space; the id after the last number ends documents (so N numbers make N + 1
    ids)."""

    def __init__(self, numbers: int) -> None:
        if numbers < 1:
            raise ValueError(f"--vocab-size {numbers} must be at least 1")
        if numbers > MOST_NUMBERS:
            raise ValueError(f"--vocab-size {numbers} must be at most {MOST_NUMBERS}: ids have 32 bits")
        super().__init__("NullTokenizer", None, numbers + 1, numbers, None, [str(numbers).encode()])

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        try:
            ids = [int(word) for word in text.split()]
        except ValueError as error:
            raise ValueError(f"NullTokenizer reads numbers separated by spaces: {error}") from error
        if ids and not (0 <= min(ids) and max(ids) < self.eod):
            raise ValueError(f"numbers {min(ids)}..{max(ids)} are outside 0..{self.eod - 1} (--vocab-size {self.eod})")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        self._check_range(ids)
        return " ".join(str(int(token)) for token in ids if token != self.eod)

    def whole_words(self) -> list[str]:
        """Every number is a word."""
        return [str(token) for token in range(self.eod)]


def unencodable(text: str, error: Exception) -> ValueError:
    """The error to raise for `text`: the libraries say little about text that UTF-8 cannot hold, this where it is."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as surrogate:
        return ValueError(f"lone surrogate at character {surrogate.start}: not valid Unicode")
    return ValueError(f"the tokenizer failed: {error}")


def is_plain_word(word: str) -> bool:
    """Whether a word is good for facts: at least four letters, all lower case."""
    return word.islower() and _WORD.fullmatch(word) is not None


def build_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer that `data` names.

    Raises:
        ValueError: no or an unreadable --tokenizer-model, no end-of-document token, or a --vocab-size that is not the
        tokenizer's.
    """
    if data.tokenizer_type == "NullTokenizer":
        if data.vocab_size is None:
            raise ValueError("--tokenizer-type NullTokenizer needs --vocab-size")
        return NullTokenizer(data.vocab_size)
    from .byte_tokenizers import ByteLevelTokenizer, TikTokenizer

    if data.tokenizer_type == "ByteLevelTokenizer":
        return _of_size(ByteLevelTokenizer(), data)
    path = _existing_path(data)
    tokenizer: Tokenizer
    if data.tokenizer_type == "SentencePieceTokenizer":
        if path.is_dir():
            raise ValueError(f"--tokenizer-model {path} is a folder; a SentencePieceTokenizer is a .model file")
        tokenizer = SentencePieceTokenizer(path)
    elif data.tokenizer_type == "TikTokenizer":
        if path.is_dir():
            raise ValueError(f"--tokenizer-model {path} is a folder; a TikTokenizer is a file of ranks")
        tokenizer = TikTokenizer(path, data)
    else:
        tokenizer = HuggingFaceTokenizer(path)
    return _of_size(tokenizer, data)


def _existing_path(data: DataConfig) -> Path:
    if data.tokenizer_model is None:
        raise ValueError(f"--tokenizer-type {data.tokenizer_type} needs --tokenizer-model")
    path = Path(data.tokenizer_model)
    if not path.exists():
        advice = "train one with tools/train_tokenizer.py"
        if data.tokenizer_type == "HuggingFaceTokenizer":
            advice = "give a folder with a tokenizer.json (nothing is downloaded)"
        raise ValueError(f"--tokenizer-model {path} does not exist; {advice}")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"--tokenizer-model {path} is empty; get or train it again")
    return path


def _of_size(tokenizer: Tokenizer, data: DataConfig) -> Tokenizer:
    """The tokenizer, refused when it has another size than --vocab-size."""
    if data.vocab_size is not None and data.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"--vocab-size {data.vocab_size} differs from the {tokenizer.vocab_size} pieces of "
            f"{tokenizer.path or tokenizer.kind}; leave it out"
        )
    return tokenizer
