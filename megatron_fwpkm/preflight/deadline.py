"""A bound for a step that may hang in a disk, a driver, a socket or a communication library.

None of them lets itself be interrupted from Python: what is left is to say where the process stands, and to end it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..distributed.liveness import StoreLostError, within

_EXPLAIN_SECONDS = 20.0


@contextmanager
def deadline(
    seconds: float, explain: Callable[[], str], before_end: Callable[[str], None] | None = None
) -> Iterator[None]:
    """End this process with status 1 when the context lasts longer than `seconds`.

    Args:
        seconds: the bound.
        explain: says what was waited for; called in another thread, and given up after some seconds itself.
        before_end: does something with what was said, such as writing a report.
    """

    def end() -> None:
        """Say why, and leave without waiting for anything."""
        try:
            message = within(_EXPLAIN_SECONDS, explain)
        except (StoreLostError, RuntimeError, ValueError) as error:
            message = f"a step took longer than {seconds:g} s, and who holds it up cannot be found out ({error})"
        print(f"error: {message}", file=sys.stderr, flush=True)
        try:
            if before_end is not None:
                before_end(message)
        finally:
            os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
