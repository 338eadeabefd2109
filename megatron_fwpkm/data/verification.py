"""Some documents of a corpus, read back from the dataset and compared with their text. Free of torch."""

from __future__ import annotations

import random
from typing import Any

from .encoding import BlockEncoder
from .indexed_format import IndexedWriter


class DocumentSample:
    """Up to `size` documents, each offered one with the same chance, the same ones in every run."""

    def __init__(self, size: int) -> None:
        self.documents: list[tuple[int, str]] = []
        self._size = size
        self._offered = 0

    def offer(self, number: int, text: str) -> None:
        """Document `number` of the dataset is `text`."""
        self._offered += 1
        if len(self.documents) < self._size:
            self.documents.append((number, text))
        elif (place := random.Random(self._offered).randrange(self._offered)) < self._size:
            self.documents[place] = (number, text)

    def state(self) -> list[Any]:
        """For `restore`."""
        return [self._offered, self.documents]

    def restore(self, state: list[Any]) -> None:
        """Go on from an earlier run's state."""
        self._offered, documents = state
        self.documents = [(int(number), str(text)) for number, text in documents]


def check_sample(sample: DocumentSample, encoder: BlockEncoder, writer: IndexedWriter) -> str:
    """Compare every document of the sample with the plain tokenizer's tokens of its text, and decode it. Returns what
    was found, in words.

    Raises:
        ValueError: the dataset holds other tokens.
    """
    lengths = writer.lengths()
    options, tokenizer = encoder.options, encoder.tokenizer
    changed = 0
    for number, text in sorted(sample.documents):
        found = writer.document(number, lengths)
        if found.tobytes() != encoder.document(text):
            raise ValueError(
                f"--verify: document {number} does not hold the tokens of its text, which begins {text[:40]!r}; "
                f"nothing was written. Please report this, and run with --accelerator none"
            )
        ids = found[1 if options.prepend_bos else 0 : len(found) - (1 if options.append_eod else 0)].tolist()
        changed += options.control_tokens != "parse" and tokenizer.decode(ids) != text
    told = f"{len(sample.documents):,} documents hold the tokens of their text"
    if changed:
        return f"{told}; {changed:,} decode to another text (the tokenizer normalizes)"
    return f"{told} and decode back to it"
