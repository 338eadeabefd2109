"""Ctrl-C in one quiet line, from the first moment of a program on. Entry points import this before anything else.

Importing takes most of a start, and Python's own KeyboardInterrupt does badly there: it ends in a traceback, or a
library takes it for a missing package, or swallows it and the program goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

from . import parent  # noqa: F401  (remembers the parent process before the long imports)

STATUS = 130


def on_interrupt(number: int, frame: FrameType | None) -> None:
    """Handler of SIGINT: KeyboardInterrupt in the midst of work, the end of the process before and during imports."""
    if importers(frame) or not _working(frame):
        end()
    raise KeyboardInterrupt


def importers(frame: FrameType | None) -> list[str]:
    """Names of the modules whose import statements are under way, innermost first."""
    found, inside = [], False
    while frame is not None:
        machinery = frame.f_code.co_filename.startswith("<frozen importlib")
        if inside and not machinery:
            found.append(frame.f_globals.get("__name__", ""))
        inside = machinery
        frame = frame.f_back
    return found


def end() -> None:
    """Say that the program was interrupted, and exit without further output."""
    with suppress(OSError, RuntimeError, ValueError):  # the signal may have come in the middle of writing
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(STATUS)


def _working(frame: FrameType | None) -> bool:
    """Whether `run_cli` has begun and not ended."""
    while frame is not None and frame.f_code.co_name != "run_cli":
        frame = frame.f_back
    return frame is not None


# Only in a program: who imports an entry point to call it (a test, a worker process) keeps its own handlers.
if (
    importers(sys._getframe())[-1:] == ["__main__"]
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, on_interrupt)
