"""What --json-keys says: keys, each with others that stand in for it. Quick to import."""

from __future__ import annotations

from collections.abc import Sequence


def alternatives(key: str) -> tuple[str, ...]:
    """The keys of `text|body`, of which the first that holds text counts."""
    return tuple(key.split("|"))


def dataset_name(key: str) -> str:
    """What a dataset is called: by the first key of `text|body`."""
    return alternatives(key)[0]


def check_json_keys(keys: Sequence[str]) -> None:
    """Raises ValueError for no key, an empty one, or one that is named twice."""
    flag = f"--json-keys {' '.join(keys)}"
    for key in keys:
        names = alternatives(key)
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"{flag}: {key!r} is invalid; give a key, or alternatives such as text|body, each once")
    names = tuple(map(dataset_name, keys))
    if not keys or len(set(names)) < len(names):
        raise ValueError(
            f"{flag}: give at least one key, and each key once (a dataset is named after the first key of text|body)"
        )
