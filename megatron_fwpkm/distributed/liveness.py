"""Which rank made a collective fail: every rank records what it is doing in the run's store.

A collective that waits for a rank which was killed, stopped, hangs or is cut off fails on the others, after at most
--distributed-timeout-minutes, with a message of the communication library that names no rank. The records in the
store show what every rank was doing, heartbeats show which ranks are alive, and on the same machine the state of the
other processes shows how they ended. The clocks of two machines are never compared: a heartbeat is a counter, and its
reader waits for it to change.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from ..processes.process_identity import is_stopped, process_space, process_start

T = TypeVar("T")

HEARTBEAT_SECONDS = 1.0
"""Interval at which every rank increments its counter."""
_PATIENCE_SECONDS = 3.0
_STORE_SECONDS = 10.0
_SIGNS = ("connection closed", "connection reset", "timed out", "timeout", "broken pipe", "gloo", "nccl", "socket")


class StoreLostError(RuntimeError):
    """The run's store did not answer in time."""


def within(seconds: float, function: Callable[[], T]) -> T:
    """The result of `function`, which asks the run's store; raises StoreLostError when it takes longer.

    On a machine that lost its network a question to the store blocks until TCP gives up, a quarter of an hour later.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []

    def call() -> None:
        """Keep the result of the function, or its error."""
        try:
            outcome.append((function(), None))
        except BaseException as error:  # handed to the caller
            outcome.append((None, error))

    thread = threading.Thread(target=call, name="store question", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise StoreLostError(f"the run's store did not answer within {seconds:g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


class RollCall:
    """One rank's place in the store of a process group."""

    def __init__(self, rank: int, size: int) -> None:
        """Join the default process group's store, and let the heart beat until `close`."""
        self._rank, self._size = rank, size
        self._store = dist.distributed_c10d._get_default_store() if size > 1 else None
        self._steps = 0
        self._ended = threading.Event()
        self.watchers: list[Callable[[str], None]] = []
        """Called with every mark of this rank."""
        if self._store is not None:
            # A connection of its own: one that waits for an answer answers nobody else.
            threading.Thread(target=self._beat, args=(self.connect(),), name="heartbeat", daemon=True).start()

    def close(self) -> None:
        """End the heartbeat."""
        self._ended.set()

    def mark(self, doing: str) -> None:
        """Record what this rank is doing now: `iteration 12`, `saving iteration 20`."""
        for watcher in self.watchers:
            watcher(doing)
        if self._store is None:
            return
        self._steps += 1
        word = {
            "doing": doing,
            "steps": self._steps,
            "time": time.monotonic(),
            "host": socket.gethostname(),
            "space": process_space(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
        }
        self._store.set(_key(self._rank), json.dumps(word))

    def connect(self) -> dist.Store | None:
        """A connection of its own to the run's store, for another thread; None in a run of one process."""
        return None if self._store is None else self._store.clone()  # type: ignore[attr-defined]

    def leave_error(self, message: str) -> None:
        """Record that this rank ends with an error; raises StoreLostError if the store does not answer."""
        if (store := self._store) is not None:
            within(_STORE_SECONDS, lambda: store.set(_key(self._rank) + "/error", message))

    def explain(self, error: BaseException) -> str | None:
        """Sentences about the ranks that made a collective fail; None for an error of another kind."""
        if self._store is None or not is_communication_failure(error):
            return None
        try:
            suspects = within(_PATIENCE_SECONDS + 2 * HEARTBEAT_SECONDS + _STORE_SECONDS, self._find_suspects)
        except StoreLostError:
            return (
                f"the run's store does not answer: this host ({socket.gethostname()}) lost its network, or the host of "
                "rank 0 (or of torchrun's store) did"
            )
        except (RuntimeError, ValueError):  # the store lived in a rank or agent that is gone
            return "the process that holds the run's store (rank 0, or torchrun on its node) is gone"
        return "; ".join(suspects) or f"another rank does not answer ({str(error).splitlines()[0]})"

    def _beat(self, store: dist.Store) -> None:
        try:
            while not self._ended.wait(HEARTBEAT_SECONDS):
                store.add(_key(self._rank) + "/beats", 1)
        except (RuntimeError, ValueError):  # the store is gone: who meets in it will say so
            return

    def _find_suspects(self) -> list[str]:
        """Ranks that failed, are gone or are silent; if all are there, those that are behind."""
        before = [self._beats(rank) for rank in range(self._size)]
        deadline = time.monotonic() + _PATIENCE_SECONDS
        # A process that was killed closes its connections some time before it is gone.
        while not (suspects := self._suspects(self._judge_process)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not suspects:
            time.sleep(2 * HEARTBEAT_SECONDS)
            suspects = self._suspects(lambda rank, word: self._judge_heartbeat(rank, word, before[rank]))
        return suspects or self._suspects(self._judge_progress)

    def _suspects(self, judge: Callable[[int, dict[str, Any]], str | None]) -> list[str]:
        assert self._store is not None
        found = []
        for other in range(self._size):
            if other == self._rank:
                continue
            if self._store.check([_key(other) + "/error"]):
                found.append(f"rank {other} failed: {self._store.get(_key(other) + '/error').decode()}")
            elif (word := self._read(other)) is None:
                found.append(f"rank {other} did not start")
            elif (text := judge(other, word)) is not None:
                found.append(f"rank {other} (process {word['pid']} on {word['host']}) {text} ({_where(word)})")
        return found

    def _judge_process(self, other: int, word: dict[str, Any]) -> str | None:
        """State of a process of this machine; another machine may have the same host name."""
        if word["space"] != process_space():
            return None
        started = process_start(word["pid"])
        if started != word["process_start"]:
            return "is gone: it was killed or crashed"
        return "is stopped and does not answer" if is_stopped(word["pid"]) else None

    def _judge_heartbeat(self, other: int, word: dict[str, Any], before: int) -> str | None:
        if self._beats(other) > before:
            return None
        return "is silent: it was killed, stopped or cut off from the network"

    def _judge_progress(self, other: int, word: dict[str, Any]) -> str | None:
        return "does not answer" if word["steps"] < self._steps else None

    def _beats(self, rank: int) -> int:
        assert self._store is not None
        return self._store.add(_key(rank) + "/beats", 0)

    def _read(self, rank: int) -> dict[str, Any] | None:
        assert self._store is not None
        if not self._store.check([_key(rank)]):
            return None
        return json.loads(self._store.get(_key(rank)))


def is_communication_failure(error: BaseException) -> bool:
    """Whether an error is a collective's that lost another rank."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def _where(word: dict[str, Any]) -> str:
    """A rank's last word, with its age where it was taken from the clock that this machine has had since its start."""
    age = f", {time.monotonic() - word['time']:.0f} s ago" if word["space"] == process_space() else ""
    return f"last word: {word['doing']}{age}"


def _key(rank: int) -> str:
    return f"fwpkm/rank/{rank}"
