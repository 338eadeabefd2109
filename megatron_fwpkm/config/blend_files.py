"""Files that stand for the words of --data-path and its like: --data-args-path and --per-split-data-args-path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

_SPLITS = {"train": "train_data_path", "valid": "valid_data_path", "test": "test_data_path"}


def blends_from_files(values: Mapping[str, object]) -> dict[str, tuple[tuple[str, ...], str]]:
    """(words, file) by field of DataConfig for what the files among `values`, given options by field, stand for.

    Raises ValueError for a file beside the flags it stands for and for a malformed file; OSError for a missing one.
    """
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    single, split = values.get("data_args_path"), values.get("per_split_data_args_path")
    if isinstance(single, str):
        _refuse_beside("--data-args-path", single, values, ["data_path"])
        found["data_path"] = (_words(single, Path(single).read_text(encoding="utf-8")), single)
    if isinstance(split, str):
        _refuse_beside("--per-split-data-args-path", split, values, list(_SPLITS.values()))
        found |= {_SPLITS[name]: (words, split) for name, words in _per_split(split).items()}
    return found


def _refuse_beside(flag: str, path: str, values: Mapping[str, object], fields: list[str]) -> None:
    for field in fields:
        if values.get(field):
            other = "--" + field.replace("_", "-")
            raise ValueError(f"{flag} {path} and {other} are mutually exclusive: remove one of them")


def _per_split(path: str) -> dict[str, tuple[str, ...]]:
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--per-split-data-args-path {path} is not JSON: {error}") from error
    if not isinstance(read, dict) or "train" not in read or not read.keys() <= _SPLITS.keys():
        raise ValueError(
            f'--per-split-data-args-path {path} must contain {{"train": ..., "valid": ..., "test": ...}}; "train" '
            "is required"
        )
    return {name: _words(f"{path}, {name}", value) for name, value in read.items() if value is not None}


def _words(place: str, value: object) -> tuple[str, ...]:
    """A prefix or WEIGHT PREFIX pairs, written as one text or as a list."""
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str | int | float) for word in words):
        raise ValueError(f"{place} must be a prefix or WEIGHT PREFIX pairs, as text or as a list")
    if not words:
        raise ValueError(f"{place} is empty: it must contain a prefix or WEIGHT PREFIX pairs")
    return tuple(str(word) for word in words)
