"""The package gigatoken (an optional extra, one version), kept within bounds. Free of torch."""

from __future__ import annotations

import importlib.metadata
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...processes.freed_memory import release_memory

GIGATOKEN_VERSION = "0.10.0"
_LEAST_TEXT_PER_LOAD = 4_000_000
"""Bytes of text before which it is not loaded anew."""


def check_gigatoken() -> None:
    """Raises ValueError when the package is not there in the right version."""
    try:
        found = importlib.metadata.version("gigatoken")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(f"not installed (pip install gigatoken=={GIGATOKEN_VERSION})") from error
    if found != GIGATOKEN_VERSION:
        raise ValueError(f"version {found} is installed, but only {GIGATOKEN_VERSION} is supported")


@contextmanager
def gigatoken_loading() -> Iterator[None]:
    """Raises ValueError, with what the library said, where it cannot load a tokenizer."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a young library, and where Rust gives up, it raises no Exception
        raise ValueError(f"cannot load the tokenizer: {error}") from error


class BoundedGigatoken:
    """A tokenizer of the package, which remembers every word it meets and never forgets: it is loaded anew after
    `text_per_load` bytes of text, or when this process has grown by `cache_bytes` since, so text of ever new words,
    which fills 10 bytes a character, does not fill the memory."""

    def __init__(self, load: Callable[[], Any], *, cache_bytes: int, text_per_load: int) -> None:
        """Load it. Raises ValueError, with what the library said, where it cannot."""
        self._load, self._cache_bytes, self._text_per_load = load, cache_bytes, text_per_load
        self._begin()

    def __call__(self, texts: list[bytes]) -> Iterator[np.ndarray]:
        """Tokens of each text in UTF-8."""
        # A text at a time: the library keeps what it has met, which encode_batch would look for anew in every call.
        least = min(_LEAST_TEXT_PER_LOAD, self._text_per_load)
        grown = self._since > least and _resident_bytes() - self._bytes_at_first > self._cache_bytes
        if grown or self._since > self._text_per_load:
            del self._encode  # before there is another
            self._begin()
        self._since += sum(map(len, texts))
        return map(self._encode, texts)

    def _begin(self) -> None:
        release_memory()
        with gigatoken_loading():
            self._encode, self._since = self._load().encode, 0
        release_memory()
        self._bytes_at_first = _resident_bytes()  # anew: what else has grown meanwhile must not bring this about again


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
