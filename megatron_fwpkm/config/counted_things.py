"""Numbers of things in words, for messages and reports."""

from __future__ import annotations


def count_things(number: int, singular: str, plural: str | None = None) -> str:
    """`1 node`, `2,048 nodes`, and with a `plural` of its own `2 processes`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
