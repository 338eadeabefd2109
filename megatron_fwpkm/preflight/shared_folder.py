"""Whether all nodes see one folder: node 0 leaves a file there, and the others look for it."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from pathlib import Path

_SECONDS = 5.0
"""A network file system may show a new file to the others only after some seconds."""


def leave_token(folder: Path) -> Path | None:
    """A new file with its own name in it; None where it cannot be written."""
    path = folder / f".preflight-{uuid.uuid4().hex}"
    with suppress(OSError):
        path.write_text(path.name)
        return path
    return None


def see_token(folder: Path, name: str, seconds: float = _SECONDS) -> bool:
    """Whether the file comes into sight within some seconds, and can be read."""
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if (folder / name).read_text() == name:
                return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
