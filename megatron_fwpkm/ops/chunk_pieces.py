"""Which tokens are read, returned, counted and written, piece by piece.

Positions count from 0 over the *stream* of a call: the pending tokens first, then the new ones. Within one piece the
tables stand still; its write happens at its end. Every range is contiguous, so a piece is a handful of numbers
(DESIGN sections 2.2 to 2.4).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class StreamNumbers(Protocol):
    """The options of a memory that say what is read and written when."""

    @property
    def chunk_size(self) -> int:
        """Tokens per write and sequence."""

    @property
    def lookahead(self) -> int:
        """Tokens between a token and the last one that its target is made of."""

    @property
    def boundary(self) -> str:
        """`drop` or `carry`."""

    @property
    def write_scale(self) -> str:
        """`consistent` or `official`."""


class Piece(NamedTuple):
    """One read of consecutive tokens followed by at most one write.

    Reads `[start, stop)` and returns the reads of `[emit_start, stop)`. Writes tokens `[start, write_stop)`
    towards the targets `lookahead` later. The sub-keys move by the addressing of `[start, key_stop)`.
    """

    start: int
    emit_start: int
    stop: int
    write_stop: int
    count_start: int
    """Reads of `[count_start, count_stop)` count for the mean over the readers of a slot."""
    count_stop: int
    key_stop: int
    num_samples: int
    """Tokens per sequence that scale a write when no mask is given: the N / B of DESIGN 2.2."""

    @property
    def num_written(self) -> int:
        """Tokens per sequence that this piece writes."""
        return self.write_stop - self.start


def drop_schedule(num_tokens: int, chunk_size: int, lookahead: int) -> list[Piece]:
    """Chunks of `chunk_size` tokens; the last `lookahead` of each are never written (the paper's training)."""
    pieces = []
    for start in range(0, num_tokens, chunk_size):
        stop = min(start + chunk_size, num_tokens)
        write_stop = max(start, stop - lookahead)
        pieces.append(Piece(start, start, stop, write_stop, start, stop, stop, stop - start))
    return pieces


def carry_schedule(num_pending: int, num_tokens: int, chunk_size: int, lookahead: int) -> tuple[list[Piece], int]:
    """Chunks that cross calls: a write happens when `chunk_size` (query, target) pairs are complete.

    Returns:
        The pieces, and the position of the first token that stays pending.
    """
    pieces = []
    waiting, position, end = 0, num_pending, num_pending + num_tokens
    while position < end:
        window_stop = waiting + chunk_size + lookahead
        if window_stop > end:
            # The window stays incomplete: the new tokens are read and wait.
            pieces.append(Piece(position, position, end, position, position, position, position, 0))
            break
        # Waiting tokens are read again: the reads that define a write are those of the tables it changes. When a call
        # lowers chunk_size, the pending tokens alone can fill a window; then a piece returns nothing.
        written = waiting + chunk_size
        emit_start = min(position, window_stop)
        pieces.append(Piece(waiting, emit_start, window_stop, written, waiting, written, written, chunk_size))
        waiting, position = written, max(position, window_stop)
    return pieces, waiting


def official_schedule(num_pending: int, num_tokens: int, chunk_size: int, lookahead: int) -> tuple[list[Piece], int]:
    """The authors' streaming (DESIGN 2.4): sizes depend on how a text is cut into calls.

    The first piece of a call takes `chunk_size + lookahead - num_pending` tokens, later ones `chunk_size`; all
    waiting tokens but the last `lookahead` are written when at least `chunk_size` wait; counts and N come from the
    tokens of the current piece only.

    Returns:
        The pieces, and the position of the first token that stays pending.
    """
    pieces = []
    waiting, position, end = 0, num_pending, num_pending + num_tokens
    size = max(1, chunk_size + lookahead - num_pending)
    while position < end:
        stop = min(position + size, end)
        if stop - waiting >= chunk_size:
            written = stop - lookahead
            pieces.append(Piece(waiting, position, stop, written, position, stop, written, stop - position))
            waiting = written
        else:
            pieces.append(Piece(position, position, stop, position, position, position, position, 0))
        position, size = stop, chunk_size
    return pieces, waiting


def flush_schedule(num_pending: int, lookahead: int) -> tuple[list[Piece], int]:
    """One smaller chunk of all pending tokens whose targets are known.

    Returns:
        The pieces (none when no pair is complete), and the position of the first token that stays pending.
    """
    written = max(0, num_pending - lookahead)
    pieces = [Piece(0, written, written, written, 0, written, written, written)] if written else []
    return pieces, written


def call_schedule(options: StreamNumbers, num_pending: int, num_tokens: int) -> tuple[list[Piece], int]:
    """What a call with new tokens reads and writes when, by the boundary and the arithmetic of its options.

    Returns:
        The pieces, and the position of the first token that stays pending.
    """
    chunk_size, lookahead = options.chunk_size, options.lookahead
    if options.boundary == "drop":
        return drop_schedule(num_tokens, chunk_size, lookahead), num_pending + num_tokens
    schedule = official_schedule if options.write_scale == "official" else carry_schedule
    return schedule(num_pending, num_tokens, chunk_size, lookahead)
