"""The JSON files of an export, read strictly: an object of bounded size, no name twice, no NaN.

Ships inside exports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

AGAIN = "copy the folder again, or export again"
MOST_JSON = 1 << 20
"""Bytes: a configuration has a few thousand. Parsed, JSON may take 30 times the memory of its text."""
_NOT_IN_FILES = ("transformers_weights", "attn_implementation", "experts_implementation", "per_layer_config",
                 "fusion_config")  # fmt: skip
"""Fields with which config.json would have Transformers read other files, or run other code, than those checked."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_WHOLE = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "num_return_sequences", "top_k")
_NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty")
"""Settings of generation, with the kinds of number that they are."""


def check_json_files(folder: Path) -> None:
    """Check the configuration files of a local folder, those that it has.

    Raises:
        ValueError: a file is damaged. Transformers would pass over a damaged generation_config.json, and texts might
            end elsewhere.
    """
    config, generation = folder / CONFIG_NAME, folder / GENERATION_CONFIG_NAME
    vocab_size: object = None
    if config.is_file():
        check_inside(folder, config)
        content = read_json_object(config)
        vocab_size = content.get("vocab_size")
        for name in _NOT_IN_FILES:
            if content.get(name) is not None:
                raise ValueError(f"{config}: {name}={_short(content[name])} is not supported; remove the field")
    if generation.is_file():
        check_inside(folder, generation)
        _check_generation(generation, vocab_size if type(vocab_size) is int else None)


def _check_generation(file: Path, vocab_size: int | None) -> None:
    settings = read_json_object(file)
    for name in (*_TOKENS, *_WHOLE, *_NUMBERS):
        value = settings.get(name)
        kinds = (int, float) if name in _NUMBERS else (int,)
        values = value if isinstance(value, list) and name in _TOKENS else [value]
        if not all(one is None or type(one) in kinds for one in values):
            raise ValueError(f"{file} is damaged: {name}={_short(value)} is not a number of its kind; {AGAIN}")
        if name in _TOKENS and not all(one is None or 0 <= one < (vocab_size or one + 1) for one in values):
            raise ValueError(
                f"{file} is damaged: {name}={_short(value)} is no token (vocab_size={vocab_size}); {AGAIN}"
            )


def check_inside(folder: Path, file: Path) -> None:
    """Check that a file of a folder is no link out of it; the cache of the Hugging Face Hub has links into `blobs`.

    Raises:
        ValueError: it is such a link.
    """
    root, target = folder.resolve(), file.resolve()
    roots = [root, *(snapshots.parent / "blobs" for snapshots in root.parents if snapshots.name == "snapshots")]
    if not any(target.is_relative_to(one) for one in roots):
        raise ValueError(f"{file} is a link to {target}, which is outside of the folder; copy the file into the folder")


def read_json_object(file: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        file: the file, which exists.
        most: its largest size in bytes.

    Raises:
        ValueError: it is larger, or not an object, or not JSON; with the file and the reason, in one line.
    """
    size = file.stat().st_size
    if size > most:
        raise ValueError(f"{file} is damaged: it has {size:,} bytes, but at most {most:,} are expected; {AGAIN}")
    try:
        return parse_object(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: it does not contain a JSON object ({error}); {AGAIN}") from error


def parse_object(text: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8.

    Raises:
        ValueError: it is another value, nested too deeply, has a name twice or a number that JSON does not have.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refused)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}")
    return value


def _short(value: object) -> str:
    """A value in an error message, which is one line however long the value is."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{_short(twice)} occurs twice")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")
