"""The tokenizer that the options name."""

from __future__ import annotations

from pathlib import Path

from ...config import DataConfig
from .base import Tokenizer
from .byte_tokenizers import ByteLevelTokenizer, TikTokenizer
from .hugging_face_tokenizer import HuggingFaceTokenizer
from .null_tokenizer import NullTokenizer
from .sentencepiece_tokenizer import SentencePieceTokenizer


def build_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer that `data` names.

    Raises:
        ValueError: no or an unreadable --tokenizer-model, no end-of-document token, or a --vocab-size that is not the
        tokenizer's.
    """
    if data.tokenizer_type == "NullTokenizer":
        if data.vocab_size is None:
            raise ValueError("--tokenizer-type NullTokenizer requires --vocab-size")
        return NullTokenizer(data.vocab_size)
    if data.tokenizer_type == "ByteLevelTokenizer":
        return _of_size(ByteLevelTokenizer(), data)
    path = _existing_path(data)
    tokenizer: Tokenizer
    if data.tokenizer_type == "SentencePieceTokenizer":
        if path.is_dir():
            raise ValueError(f"--tokenizer-model {path} is a folder; SentencePieceTokenizer expects a .model file")
        tokenizer = SentencePieceTokenizer(path)
    elif data.tokenizer_type == "TikTokenizer":
        if path.is_dir():
            raise ValueError(f"--tokenizer-model {path} is a folder; TikTokenizer expects a file of ranks")
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
            advice = "give a folder that contains tokenizer.json (nothing is downloaded)"
        raise ValueError(f"--tokenizer-model {path} does not exist; {advice}")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"--tokenizer-model {path} is empty; download or train it again")
    return path


def _of_size(tokenizer: Tokenizer, data: DataConfig) -> Tokenizer:
    """The tokenizer, refused when it has another size than --vocab-size."""
    if data.vocab_size is not None and data.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"--vocab-size {data.vocab_size} differs from the vocabulary size {tokenizer.vocab_size} of "
            f"{tokenizer.path or tokenizer.kind}; remove it"
        )
    return tokenizer
