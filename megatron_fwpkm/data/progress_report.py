"""One progress line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TextIO


class ProgressReport:
    """Reports bytes read against their total, with speed and time left. `total` may be 0 when unknown."""

    def __init__(self, total: int, *, stream: TextIO | None = None, interval: float | None = None) -> None:
        """`interval`: seconds between two lines; default 0.2 on a terminal and 10 elsewhere."""
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._interval = interval if interval is not None else (0.2 if self._terminal else 10.0)
        self._start = self._last = time.monotonic()
        self._shown = False

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self._start

    def update(self, consumed: int, text_bytes: int, tokens: int | None = None) -> None:
        """`consumed` of the total bytes are read; they gave `text_bytes` of text and, where counted, `tokens`
        tokens."""
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        elapsed = max(now - self._start, 1e-9)
        parts = [f"{text_bytes / 1e6 / elapsed:.1f} MB/s"]
        if tokens is not None:
            parts.append(f"{tokens / elapsed:,.0f} tokens/s")
        if self._total and consumed:
            left = elapsed * (self._total - consumed) / consumed
            parts = [f"{100 * consumed / self._total:.0f} %", *parts, f"ETA {clock(left)}"]
        line = "  ".join(parts)
        self._stream.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        self._stream.flush()
        self._shown = True

    def close(self) -> None:
        """Clear the line of a terminal."""
        if self._terminal and self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values in two columns, a row per line."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
