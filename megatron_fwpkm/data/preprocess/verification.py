"""Some documents of a corpus, read back from the datasets and compared with their text. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

from ..indexed.indexed_format import IndexedWriter
from .document_sample import DocumentSample
from .encoding import BlockEncoder


def check_sample(sample: DocumentSample, encoder: BlockEncoder, writers: Sequence[IndexedWriter]) -> str:
    """Compare every document of the sample with the plain tokenizer's tokens of its text, and decode it. Returns what
    was found, in words.

    Raises:
        ValueError: a dataset holds other tokens.
    """
    lengths = [writer.lengths() for writer in writers]
    options, tokenizer = encoder.options, encoder.tokenizer
    changed = 0
    for _, dataset, number, text in sample.documents:
        found = writers[dataset].document(number, lengths[dataset])
        if found.tobytes() != encoder.document(text):
            raise ValueError(
                f"--verify: document {number} of {writers[dataset].prefix} does not hold the tokens of its text, which "
                f"begins {text[:40]!r}; nothing was written; please report this, and run with --accelerator none"
            )
        ids = found[1 if options.prepend_bos else 0 : len(found) - (1 if options.append_eod else 0)].tolist()
        changed += options.control_tokens != "parse" and tokenizer.decode(ids) != text
    one = len(sample.documents) == 1
    told = f"{len(sample.documents):,} " + (
        "document holds the tokens of its text" if one else "documents hold the tokens of their text"
    )
    if changed:
        return f"{told}; {changed:,} decode{'s' * (changed == 1)} to different text (the tokenizer normalizes)"
    return f"{told} and decode{'s' * one} back to it"
