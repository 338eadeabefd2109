"""The words of RULER: those of the package `wonderwords`, and a longer list from a file."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from ..text_files import read_text_file

_KINDS = ("noun", "adjective", "verb")


@cache
def wonderwords_list(kind: str) -> tuple[str, ...]:
    """The nouns, adjectives or verbs of the package, in its order. Raises ValueError where it is missing."""
    assert kind in _KINDS
    try:
        file = files("wonderwords") / "assets" / f"{kind}list.txt"
    except ModuleNotFoundError as error:
        raise ValueError(
            'RULER takes its words from the package wonderwords, which is not installed; use: pip install "wonderwords'
            '==3.0.1" (part of megatron-fwpkm[eval])'
        ) from error
    return tuple(line.rstrip() for line in file.read_text().splitlines())


@cache
def list_words() -> tuple[str, ...]:
    """The words of common-words lists, sorted."""
    return tuple(sorted({word for kind in _KINDS for word in wonderwords_list(kind)}))


class KeyWords(Sequence[str]):
    """All pairs adjective-noun, sorted: six million strings, of which none is made before it is asked for."""

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]) -> None:
        self._nouns = sorted(set(nouns))
        firsts = sorted(f"{adjective}-" for adjective in set(adjectives))
        # Pairs of one adjective stand together, unless it begins another one: blue- and blue-eyed-.
        self._groups: list[list[str]] = []
        for first in firsts:
            if self._groups and first.startswith(self._groups[-1][0]):
                self._groups[-1].append(first)
            else:
                self._groups.append([first])
        sizes = [len(self._pairs(group)) if len(group) > 1 else len(self._nouns) for group in self._groups]
        self._begins = list(itertools.accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        """The pair at an index from 0; slices are not offered."""
        number = bisect.bisect_right(self._begins, place) - 1
        group, within = self._groups[number], place - self._begins[number]
        return f"{group[0]}{self._nouns[within]}" if len(group) == 1 else self._pairs(group)[within]

    def _pairs(self, group: Sequence[str]) -> list[str]:
        return sorted({f"{first}{noun}" for first in group for noun in self._nouns})


@cache
def key_words() -> KeyWords:
    """Keys of needles."""
    return KeyWords(wonderwords_list("adjective"), wonderwords_list("noun"))


def read_words(flag: str, path: str) -> tuple[str, ...]:
    """Words of a file: the values of a JSON object (as RULER's english_words.json), or a word per line.

    Raises:
        ValueError: no file, no words; the message names `flag`.
    """
    if not Path(path).is_file():
        raise ValueError(f"{flag} {path} does not exist or is not a file")
    text = read_text_file(flag, path)
    if not text.lstrip().startswith("{"):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        return tuple(str(word) for word in json.loads(text).values())
    except ValueError as error:
        raise ValueError(f"{flag} {path} is not JSON: {error}") from error
