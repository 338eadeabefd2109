"""Datasets as options name them: one prefix, or a blend of several with weights; made with the tokenizer at hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..tokenizers import Tokenizer
from .indexed_format import DatasetInfo, read_dataset_info
from .mapped_files import map_array

Blend = tuple[list[str], list[float] | None]
"""Prefixes, and their weights where there are several."""

logger = logging.getLogger(__name__)


def parse_blend(flag: str, words: Sequence[str]) -> Blend | None:
    """`PREFIX` or `WEIGHT PREFIX WEIGHT PREFIX ...` as prefixes and weights (None for a single dataset); None when
    empty.

    Raises:
        ValueError: anything else, or a weight that is not positive.
    """
    if not words:
        return None
    if len(words) == 1:
        return [words[0]], None
    try:
        weights = [float(word) for word in words[0::2]]
    except ValueError:
        weights = []
    if len(words) % 2 or not weights:
        raise ValueError(
            f"{flag} {' '.join(words)}: give one PREFIX, or WEIGHT PREFIX pairs such as {flag} 0.7 books 0.3 web"
        )
    if not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"{flag} {' '.join(words)}: every weight must be a positive number")
    prefixes = list(words[1::2])
    if len(set(prefixes)) < len(prefixes):
        raise ValueError(f"{flag} {' '.join(words)}: a dataset is named twice; add up its weights")
    return (prefixes, weights) if len(prefixes) > 1 else (prefixes, None)


def checked_dataset(prefix: str, tokenizer: Tokenizer) -> DatasetInfo:
    """Open a dataset.

    Raises:
        ValueError: missing or damaged files, no documents, or tokens that are not of this tokenizer.
    """
    info = read_dataset_info(prefix)
    if info.documents == 0:
        raise ValueError(f"dataset {prefix} contains no documents")
    if info.sidecar is not None:
        made = info.sidecar["tokenizer"]
        if made["identity"] != tokenizer.identity:
            raise ValueError(
                f"dataset {prefix} was made with a different tokenizer ({made['type']}, {made['vocab_size']} pieces, "
                f"identity {made['identity'][:12]}) than this run's ({tokenizer.kind}, {tokenizer.vocab_size} pieces, "
                f"identity {tokenizer.identity[:12]}); give the dataset's tokenizer with --tokenizer-type, "
                "--tokenizer-model and --vocab-size, or prepare the corpus again"
            )
        return info
    logger.warning(
        "dataset %s has no sidecar .json, so its tokenizer cannot be checked, only the range of its first ids", prefix
    )
    sample = map_array(f"{prefix}.bin", info.dtype, 0, min(info.tokens_between(0, info.documents), 1 << 22))
    low, high = int(sample.min()), int(sample.max())
    if low < 0 or high >= tokenizer.vocab_size:
        raise ValueError(
            f"dataset {prefix} has token ids from {low} to {high}, but those of the tokenizer are between 0 and "
            f"{tokenizer.vocab_size - 1}; give the tokenizer that the dataset was made with"
        )
    return info
