"""Tokenizers behind one small interface, and the program that trains one. Free of torch."""

from .base import Tokenizer
from .build import build_tokenizer
from .byte_tokenizers import TikTokenizer
from .hugging_face_tokenizer import HuggingFaceTokenizer
from .sentencepiece_tokenizer import SentencePieceTokenizer

__all__ = ["HuggingFaceTokenizer", "SentencePieceTokenizer", "TikTokenizer", "Tokenizer", "build_tokenizer"]
