"""One run at a time writes into a --save folder: a lock file with host, process and start time, kept fresh while held.

A lock is stale when its process is gone (same host), or when nobody has refreshed it for STALE_SECONDS (another host).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .process_identity import process_start

LOCK_NAME = "run.lock"
REFRESH_SECONDS = 15.0
STALE_SECONDS = 90.0


def owner_of_this_process() -> dict[str, Any]:
    """What a lock says about the process that holds it."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


@contextmanager
def run_lock(root: Path, stale_seconds: float = STALE_SECONDS) -> Iterator[Path]:
    """Hold the lock of a folder, which exists; called by rank 0 alone.

    A lock of this host whose process is gone is taken over at once. One of another host is watched until it is
    refreshed (its run lives) or has not been for `stale_seconds`. Raises ValueError that names the run which holds it.
    """
    path = root / LOCK_NAME
    mine = json.dumps(owner_of_this_process())
    _acquire(path, mine, stale_seconds)
    ended = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(path, ended), daemon=True)
    refresher.start()
    try:
        yield path
    finally:
        ended.set()
        refresher.join()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def _acquire(path: Path, mine: str, stale_seconds: float) -> None:
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            _wait_until_stale(path, stale_seconds)
            path.unlink(missing_ok=True)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(mine)
        return


def _wait_until_stale(path: Path, stale_seconds: float) -> None:
    """Return when the lock may be removed; raise ValueError when its run lives."""
    text, first = _read(path), _age(path)
    if text is None:
        return
    try:
        owner = json.loads(text)
        host, pid, began, since = owner["host"], int(owner["pid"]), owner["process_start"], owner["since"]
    except (ValueError, KeyError, TypeError):
        host, pid, began, since = "an unknown host", 0, None, "an unknown time"
    if host == socket.gethostname():
        if pid == os.getpid() or process_start(pid) != began:
            return
    else:
        while (age := _age(path)) is not None and age < stale_seconds:
            if first is not None and age < first:  # refreshed while we looked
                break
            first = age
            time.sleep(min(1.0, stale_seconds / 10))
        else:
            return
    raise ValueError(
        f"--save {path.parent} is in use by process {pid} on {host} (since {since}): two runs in one folder would "
        f"destroy each other's checkpoints. Save elsewhere, or end that run; if it has ended, delete {path}"
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _age(path: Path) -> float | None:
    """Seconds since the lock was refreshed, None where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return None


def _refresh(path: Path, ended: threading.Event) -> None:
    while not ended.wait(REFRESH_SECONDS):
        try:
            os.utime(path)
        except OSError:  # the folder is away for a moment, or somebody removed the lock
            continue
