"""Documents as tokens: of text files, or of the datasets that pretraining reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ...data.indexed.blends import checked_dataset, parse_blend
from ...data.indexed.mapped_files import map_array
from ...data.tokenizers import Tokenizer
from ..text_files import read_text_file
from .perplexity_settings import PerplexitySettings

FLAG = "--text"
DATA_FLAG = "--data-path"
FIRST_FLAG = "--read-first"
_STREAM_TOKENS = 16384
"""Documents of a dataset are measured together up to so many tokens: one by one they would be a record each."""


@dataclass(frozen=True)
class Document:
    """A text: BOS, where the model's documents begin with it, and the text's tokens."""

    source: str
    """File or dataset prefix."""
    name: str
    """The file, or prefix and number of the document."""
    tokens: np.ndarray
    """int64 [N], N at least 2."""
    num_bytes: int
    """UTF-8 bytes of all tokens but the first: what the losses are the code length of."""


def load_documents(settings: PerplexitySettings, tokenizer: Tokenizer, bos: int | None) -> list[Document]:
    """Read the files and tokenize them, or read the documents of the datasets as they are.

    Raises:
        ValueError: a file or dataset cannot be read, was made with another tokenizer, or has fewer than two tokens, so
            that nothing is predicted.
    """
    if settings.data_path:
        prefixes, _ = parse_blend(DATA_FLAG, settings.data_path) or ([], None)
        return [document for prefix in prefixes for document in _dataset_documents(settings, prefix, tokenizer)]
    documents = []
    for path in settings.text:
        tokens = file_tokens(FLAG, path, tokenizer, bos)[: settings.length]
        if len(tokens) < 2:
            raise ValueError(f"{FLAG} {path} has only {len(tokens)} token, so that no token follows another")
        documents.append(_document(path, path, tokens, tokenizer))
    return documents


def load_read_first(settings: PerplexitySettings, tokenizer: Tokenizer, bos: int | None) -> list[np.ndarray]:
    """Tokens of the texts that the memory reads first."""
    return [file_tokens(FIRST_FLAG, path, tokenizer, bos) for path in settings.read_first]


def file_tokens(flag: str, path: str, tokenizer: Tokenizer, bos: int | None) -> np.ndarray:
    """int64 [N] of a text file, which `flag` names in errors; the first is BOS where the model's documents begin so."""
    ids = np.asarray(tokenizer.encode(read_text_file(flag, path)), dtype=np.int64)
    return np.concatenate([np.asarray([] if bos is None else [bos], dtype=np.int64), ids])


def source_weights(settings: PerplexitySettings) -> dict[str, float] | None:
    """The weight of every source by its name; None where every token counts alike."""
    if settings.data_path:
        prefixes, weights = parse_blend(DATA_FLAG, settings.data_path) or ([], None)
        return None if weights is None else dict(zip(prefixes, weights, strict=True))
    return dict(zip(settings.text, settings.text_weights, strict=True)) if settings.text_weights else None


def streams(documents: list[Document], memory_reset: str) -> list[list[int]]:
    """Numbers of the documents that are read in one go: all, or neighbours of one dataset that are short."""
    if memory_reset == "never":
        return [list(range(len(documents)))]
    found = []
    for _, numbers in groupby(range(len(documents)), key=lambda number: documents[number].source):
        tokens = _STREAM_TOKENS
        for number in numbers:
            tokens += len(documents[number].tokens)
            if tokens > _STREAM_TOKENS:
                found.append(list[int]())
                tokens = len(documents[number].tokens)
            found[-1].append(number)
    return found


def _dataset_documents(settings: PerplexitySettings, prefix: str, tokenizer: Tokenizer) -> Iterator[Document]:
    """Documents of at least two tokens."""
    info = checked_dataset(prefix, tokenizer)
    lengths = info.lengths[: settings.documents].astype(np.int64)
    if (lengths < 2).all():
        raise ValueError(f"dataset {prefix} has no document of two tokens or more among those that are read")
    ids = map_array(f"{prefix}.bin", info.dtype, 0, int(lengths.sum()))
    stop = 0
    for number, length in enumerate(lengths.tolist()):
        start, stop = stop, stop + length
        tokens = ids[start : start + min(length, settings.length or length)].astype(np.int64)
        if len(tokens) > 1:
            yield _document(prefix, f"{prefix}#{number}", tokens, tokenizer)


def _document(source: str, name: str, tokens: np.ndarray, tokenizer: Tokenizer) -> Document:
    predicted = [int(token) for token in tokens[1:]]
    return Document(source, name, tokens, len(tokenizer.decode(predicted).encode()))
