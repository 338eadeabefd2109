"""Which rank is to blame when a collective fails: every rank leaves word of what it is doing in the run's store.

A collective that waits for a rank which was killed, stopped or hangs fails on the others, after at most
--distributed-timeout-minutes, with a message of the communication library that names no rank. The words left in the
store, and on the same host the state of the other processes, say which rank it was and where it stood.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..checkpoint.lock import process_start

_PATIENCE_SECONDS = 3.0
_SIGNS = ("connection closed", "connection reset", "timed out", "timeout", "broken pipe", "gloo", "nccl", "socket")


class RollCall:
    """One rank's place in the store of a process group."""

    def __init__(self, rank: int, size: int) -> None:
        """Join the default process group's store."""
        self._rank, self._size = rank, size
        self._store = dist.distributed_c10d._get_default_store() if size > 1 else None
        self._steps = 0

    def mark(self, doing: str) -> None:
        """Leave word that this rank now does something new: `iteration 12`, `saving iteration 20`."""
        if self._store is None:
            return
        self._steps += 1
        word = {
            "doing": doing,
            "steps": self._steps,
            "time": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
        }
        self._store.set(_key(self._rank), json.dumps(word))

    def leave_error(self, message: str) -> None:
        """Leave word that this rank ends with an error."""
        if self._store is not None:
            self._store.set(_key(self._rank) + "/error", message)

    def explain(self, error: BaseException) -> str | None:
        """Sentences about the ranks that are to blame for a failed collective; None for an error of another kind."""
        if self._store is None or not is_communication_failure(error):
            return None
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            # A process that was killed closes its connections some time before it is gone.
            while not (suspects := self._suspects()) and time.monotonic() < deadline:
                time.sleep(0.1)
        except (RuntimeError, ValueError):  # the store lived in a rank or agent that is gone
            return "the process that holds the run's store (rank 0, or torchrun on its node) is gone"
        return "; ".join(suspects) or f"another rank does not answer ({str(error).splitlines()[0]})"

    def _suspects(self) -> list[str]:
        mine = self._read(self._rank)
        found = [self._suspicion(other, mine) for other in range(self._size) if other != self._rank]
        return [text for text in found if text]

    def _suspicion(self, other: int, mine: dict[str, Any] | None) -> str | None:
        assert self._store is not None
        if self._store.check([_key(other) + "/error"]):
            return f"rank {other} failed: {self._store.get(_key(other) + '/error').decode()}"
        word = self._read(other)
        if word is None:
            return f"rank {other} never began"
        who = f"rank {other} (process {word['pid']} on {word['host']})"
        where = f"last word: {word['doing']}, {time.time() - word['time']:.0f} s ago"
        if word["host"] == socket.gethostname():
            if process_start(word["pid"]) != word["process_start"]:
                return f"{who} is gone: it was killed or crashed ({where})"
            if _is_stopped(word["pid"]):
                return f"{who} is stopped and does not answer ({where})"
        if mine is not None and word["steps"] < mine["steps"]:
            return f"{who} does not answer ({where})"
        return None

    def _read(self, rank: int) -> dict[str, Any] | None:
        assert self._store is not None
        if not self._store.check([_key(rank)]):
            return None
        return json.loads(self._store.get(_key(rank)))


def is_communication_failure(error: BaseException) -> bool:
    """Whether an error is a collective's that lost another rank."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def _key(rank: int) -> str:
    return f"fwpkm/rank/{rank}"


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False
