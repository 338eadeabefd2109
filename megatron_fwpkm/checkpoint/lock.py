"""One run at a time writes into a --save folder: a lock file names its owner and contains a counter that it increments.

In the same boot and PID namespace, the kernel tells whether the owner is alive. Any other owner is watched: if the
counter changes, the run is alive; if it does not change for STALE_SECONDS on the watcher's own monotonic clock, the
run has ended. Host names, the owner's clock and file times are not used.

Taking over uses hard links, which a file system creates only once: a run that takes over from the lock with token T
links its own as `run.lock.T` and then renames that to `run.lock`. Only one of several runs can do so. If it dies in
between, it leaves a lock that is treated like any other.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..processes.process_identity import process_space, process_start

logger = logging.getLogger("megatron_fwpkm")

LOCK_NAME = "run.lock"
REFRESH_SECONDS = 10.0
STALE_SECONDS = 90.0
_LONGEST_LOOK = 5.0
"""Most seconds that count between two looks: a watcher that was itself suspended has seen nothing."""
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


def owner_of_this_process() -> dict[str, Any]:
    """What a lock says about the process that holds it."""
    return {
        "host": socket.gethostname(),
        "process_space": process_space(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


@dataclass(frozen=True)
class _Found:
    """A lock found in the folder."""

    path: Path
    text: str
    changed: int
    """Its modification time, only compared with itself: earlier versions change nothing else."""

    @property
    def owner(self) -> dict[str, Any]:
        """Its description of the owner; empty if it is not readable."""
        try:
            owner = json.loads(self.text)
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    @property
    def token(self) -> str:
        """The name of this holding of the lock; made from the text for locks of earlier versions."""
        token = self.owner.get("token")
        if isinstance(token, str) and re.fullmatch("[0-9a-f]{16}", token):
            return token
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def describe(self) -> str:
        """`process 7 on node1 (since 2026-01-31 12:00:00)`."""
        owner = self.owner
        return (
            f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')} "
            f"(since {owner.get('since', 'an unknown time')})"
        )


@dataclass
class RunLock:
    """A lock that this process holds."""

    path: Path
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    _beat: int = 0
    _file: int = -1
    _owner: dict[str, Any] = field(default_factory=owner_of_this_process)

    def check(self) -> None:
        """Check that no other run has taken over the folder, which may happen while this one is suspended.

        Raises ValueError that names the other run.
        """
        head = _head(self.path)
        if head is not None and head.token != self.token:
            raise ValueError(
                f"--save {self.path.parent} was taken over by {head.describe()} while this run was suspended; this run "
                "stops without saving. Resume it after the other run has ended, or use another --save folder"
            )

    def text(self) -> bytes:
        """What lies in the file, as long at any count."""
        return json.dumps({**self._owner, "token": self.token, "beat": f"{self._beat:012d}"}).encode()

    def advance(self) -> None:
        """Increment the counter in the file that this process created, wherever it is now."""
        self._beat += 1
        os.pwrite(self._file, self.text(), 0)
        os.fsync(self._file)

    def place(self, place: Path) -> bool:
        """Put the lock at `place` unless something is there."""
        own = self.path.with_name(f".{self.path.name}.{self.token}")
        self._file = os.open(own, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        try:
            os.write(self._file, self.text())
            os.fsync(self._file)
            try:
                os.link(own, place)
            except FileExistsError:
                # On a network file system an answer may get lost, and the retry finds the link of the first attempt.
                return os.fstat(self._file).st_nlink > 1
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._place_without_links(place)
            return True
        finally:
            own.unlink(missing_ok=True)

    def _place_without_links(self, place: Path) -> bool:
        self.let_go()
        try:
            self._file = os.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return False
        os.write(self._file, self.text())
        os.fsync(self._file)
        return True

    def give_back(self) -> None:
        """Remove the lock, unless another run has taken it over."""
        place = _successor(self.path, self.token)
        with suppress(OSError):  # another run takes over, or the folder is gone
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            head = _read(self.path)
            if head is not None and head.token == self.token:
                self.path.unlink()
            place.unlink()
        self.let_go()

    def let_go(self) -> None:
        """Close the file; the counter no longer changes."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@contextmanager
def run_lock(root: Path, stale_seconds: float = STALE_SECONDS) -> Iterator[RunLock]:
    """Hold the lock of an existing folder; only called by rank 0.

    A lock whose owner is known to have ended is taken over at once. If the owner cannot be checked from here, a message
    says so and the lock is watched until it changes (its run is alive) or has not changed for `stale_seconds`. Raises
    ValueError that names the run which holds the lock.
    """
    lock = _acquire(root / LOCK_NAME, stale_seconds)
    ended = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(lock, ended), daemon=True)
    refresher.start()
    try:
        yield lock
    finally:
        ended.set()
        refresher.join()
        lock.give_back()


def _refresh(lock: RunLock, ended: threading.Event) -> None:
    while not ended.wait(REFRESH_SECONDS):
        with suppress(OSError):  # the folder is temporarily unavailable, or somebody removed the lock
            lock.advance()


def _acquire(path: Path, stale_seconds: float) -> RunLock:
    while True:
        lock, head = RunLock(path), _head(path)
        if head is not None and not _is_gone(head, path, stale_seconds):
            continue
        place = path if head is None else _successor(path, head.token)
        if lock.place(place):
            if _is_head(lock) and (place == path or _move(place, path) and _is_head(lock)):
                for leftover in path.parent.glob(f"{LOCK_NAME}.*"):
                    if leftover != _successor(path, lock.token):
                        leftover.unlink(missing_ok=True)
                return lock
            place.unlink(missing_ok=True)  # another run has taken over in the meantime
        lock.let_go()


def _move(place: Path, path: Path) -> bool:
    try:
        place.rename(path)
    except FileNotFoundError:  # taken over in this very moment
        return False
    return True


def _successor(path: Path, token: str) -> Path:
    """Path of a lock that takes over from the one with `token`, before it is moved to `path`."""
    return path.with_name(f"{path.name}.{token}")


def _head(path: Path) -> _Found | None:
    """The current lock: run.lock, or the last of those that take over from it; None if there is none."""
    found = _read(path)
    while found is not None and (later := _read(_successor(path, found.token))) is not None:
        found = later
    return found


def _is_head(lock: RunLock) -> bool:
    head = _head(lock.path)
    return head is not None and head.token == lock.token


def _read(path: Path) -> _Found | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return _Found(path, file.read(), os.fstat(file.fileno()).st_mtime_ns)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise


def _is_gone(found: _Found, path: Path, stale_seconds: float) -> bool:
    """Whether a lock's run has ended; also False if the lock has a new owner and must be checked again.

    Raises ValueError if its run is alive.
    """
    alive = _is_alive(found.owner)
    if alive is None:
        logger.info(
            "--save %s is locked by %s, which cannot be checked from here: waiting up to %.0f s for the counter in %s "
            "to change",
            path.parent,
            found.describe(),
            stale_seconds,
            found.path.name,
        )
        alive = _moves(found, stale_seconds)
        if alive is None:
            return False
        if not alive:
            logger.info("%s has not changed for %.0f s: taking over the folder", found.path.name, stale_seconds)
    if alive:
        raise ValueError(
            f"--save {path.parent} is in use by {found.describe()}: two runs in one folder would overwrite each "
            f"other's checkpoints. Use another folder or stop that run; if it has already ended, delete {found.path}"
        )
    return True


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether a lock's process is running; None if only its counter can tell."""
    pid = owner.get("pid")
    if not isinstance(pid, int):
        return None
    running = pid != os.getpid() and process_start(pid) == owner.get("process_start")
    if "process_space" not in owner:  # an earlier version's: of this host if such a process runs here
        return True if running and owner.get("host") == socket.gethostname() else None
    return running if owner["process_space"] == process_space() else None


def _moves(found: _Found, stale_seconds: float) -> bool | None:
    """Whether a lock changes within `stale_seconds`; None if it is gone or has a new owner."""
    stood, last = 0.0, time.monotonic()
    while stood < stale_seconds:
        time.sleep(min(1.0, stale_seconds / 10))
        now = time.monotonic()
        stood += min(now - last, _LONGEST_LOOK)
        last = now
        seen = _read(found.path)
        if seen is None or seen.token != found.token:
            return None
        if seen != found:
            return True
    return False
