"""Faster ways to the very tokens that the plain tokenizer gives. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from .indexed_format import token_dtype
from .tokenizers import Tokenizer

Accelerator = Literal["none"]
DocumentsEncoder = Callable[[list[str]], list[bytes]]
"""Texts to their tokens as bytes in the dataset's dtype, a text each, without BOS and EOD."""


def build_encoder(tokenizer: Tokenizer, accelerator: Accelerator) -> DocumentsEncoder:
    """The chosen way of encoding."""
    dtype: np.dtype[Any] = token_dtype(tokenizer.vocab_size)
    return lambda texts: [np.array(tokenizer.encode(text), dtype=dtype).tobytes() for text in texts]
