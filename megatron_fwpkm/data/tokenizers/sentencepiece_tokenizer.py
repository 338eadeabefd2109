"""SentencePiece `.model` files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .base import Tokenizer, is_plain_word, unencodable


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
            raise ValueError(f"{path} has no </s> piece to end documents with; train a tokenizer that has one")
        size = self._processor.get_piece_size()
        super().__init__("SentencePieceTokenizer", path, size, eod, bos if bos >= 0 else None, [blob])

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; SentencePiece never matches control pieces in text."""
        try:
            return self._processor.encode(text)
        except (RuntimeError, UnicodeEncodeError) as error:
            raise unencodable(text, error) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control pieces give no text."""
        self._check_range(ids)
        return self._processor.decode([int(token) for token in ids])

    def whole_words(self) -> list[str]:
        """Words that are one piece after a space, in the order of their ids."""
        pieces = (self._processor.id_to_piece(token) for token in range(self.vocab_size))
        words = [piece[1:] for piece in pieces if piece[:1] == "\u2581" and is_plain_word(piece[1:])]
        return [word for word in words if len(self.encode(word)) == 1]

    def control_tokens(self) -> dict[str, int]:
        """Names and ids of the control tokens."""
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
