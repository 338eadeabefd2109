"""What preparation put around every document, as the datasets' descriptions say it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ...config import DataConfig
from ..indexed.indexed_format import dataset_paths

MARKS = ("prepend_bos", "append_eod")
"""Options of tools/preprocess_data.py that put a token around every document."""


def document_marks(data: DataConfig) -> dict[str, bool | None]:
    """For each of MARKS: whether the training documents have the token, None where datasets disagree or do not say."""
    per_dataset = _options(_training_prefixes(data)).values()
    found: dict[str, bool | None] = {}
    for mark in MARKS:
        told = {options.get(mark) for options in per_dataset}
        found[mark] = told.pop() if len(told) == 1 else None
    return found


def bos_doubt(data: DataConfig) -> str | None:
    """One line where it is not known whether the training documents begin with BOS, else None."""
    options = _options(_training_prefixes(data))
    by_answer: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for prefix, told in options.items():
        by_answer[told.get("prepend_bos")].append(prefix)
    result = "so the tokenizer of an export does not add it to a text"
    if by_answer[None]:
        return f"{' '.join(by_answer[None])}: it is unknown whether documents begin with BOS (--prepend-bos), {result}"
    if by_answer[True] and by_answer[False]:
        return (
            f"documents of {' '.join(by_answer[True])} begin with BOS, those of {' '.join(by_answer[False])} do not, "
            f"{result}; prepare all of them with --prepend-bos, or none"
        )
    return None


def _training_prefixes(data: DataConfig) -> list[str]:
    words = data.data_path or data.train_data_path
    return list(words) if len(words) == 1 else list(words[1::2])


def _options(prefixes: Iterable[str]) -> dict[str, dict[str, bool | None]]:
    """The options each dataset was made with that its description, if there is one, tells."""
    found: dict[str, dict[str, bool | None]] = {}
    for prefix in prefixes:
        path = dataset_paths(prefix)[2]
        told = json.loads(path.read_text(encoding="utf-8")).get("options", {}) if path.is_file() else {}
        found[prefix] = {mark: told[mark] for mark in MARKS if isinstance(told.get(mark), bool)}
    return found
