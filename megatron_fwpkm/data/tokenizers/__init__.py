"""Tokenizers behind one small interface, and the program that trains one. Free of torch."""

from .base import Tokenizer
from .build import build_tokenizer
from .sentencepiece_tokenizer import SentencePieceTokenizer

__all__ = ["SentencePieceTokenizer", "Tokenizer", "build_tokenizer"]
