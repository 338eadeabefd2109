"""Parts of the positions in a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Positions in a document, counted from 0; `stop` None is the end of the longest one."""

    start: int
    stop: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole document."""
        return self.start == 0 and self.stop is None

    def blocks(self, block: int) -> slice:
        """The blocks of this many tokens that it has; it begins and ends with one."""
        return slice(self.start // block, None if self.stop is None else self.stop // block)

    def __str__(self) -> str:
        """As tables have it."""
        if self.is_whole:
            return "all"
        return f"{self.start:,} to {self.stop - 1:,}" if self.stop is not None else f"from {self.start:,}"


def doubling_spans(blocks: int, block: int) -> Iterator[Span]:
    """The first block, the second, the next two, the next four, ..., the rest."""
    start, stop = 0, 1
    while stop < blocks:
        yield Span(start * block, stop * block)
        start, stop = stop, 2 * stop
    yield Span(start * block, None)
