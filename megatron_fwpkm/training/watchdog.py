"""The watchdog of a run: a rank that makes no progress writes the stacks of its threads and ends the run."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from ..distributed import flight_recorder
from ..distributed.hang_report import HangReport
from ..distributed.startup import World

FOLDER = "hang"
"""Folder of the stacks and records, in the log folder."""
_PATIENCE_SECONDS = 4.0
"""How long the rank that speaks waits for the words of the others."""
_C_MARGIN_SECONDS = 8.0
"""How much later faulthandler's own thread acts, which needs no GIL. Longer than the patience: when a rank ends, the
collectives of the others fail before they have spoken."""


class Watchdog:
    """Watches the marks of this rank from `__enter__` to `__exit__`.

    Python's thread writes the stacks, asks the other ranks where they stand and ends the process. Where the interpreter
    is stuck in a C call, that thread does not run either; then faulthandler's thread writes the stacks and ends it.
    """

    def __init__(self, world: World, seconds: float, log_dir: Path, completed: Callable[[], int]) -> None:
        """End the run after `seconds` without a mark; `completed` tells the last iteration that was completed."""
        assert world.roll_call is not None
        self._world, self._seconds, self._completed = world, seconds, completed
        self._roll_call = world.roll_call
        self._folder = log_dir / FOLDER
        self._path = self._folder / f"stacks_{world.rank}.txt"
        self._report = HangReport(world.rank, world.size, world.roll_call.connect())
        self._file: IO[str] | None = None
        self._doing = "starting the loop"
        self._seen = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Watchdog:
        """Begin to watch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w", encoding="utf-8")
        self.see(self._doing)
        self._roll_call.watchers.append(self.see)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End watching, and remove the file in which no stacks are."""
        self._ended.set()
        self._roll_call.watchers.remove(self.see)
        faulthandler.cancel_dump_traceback_later()
        assert self._file is not None
        self._file.close()
        self._path.unlink(missing_ok=True)

    def see(self, doing: str) -> None:
        """This rank has made progress and does something else now."""
        assert self._file is not None
        self._doing, self._seen = doing, time.monotonic()
        self._write_header()
        faulthandler.dump_traceback_later(self._seconds + _C_MARGIN_SECONDS, exit=True, file=self._file)

    def _write_header(self) -> None:
        """What stands above the stacks; written beforehand, because nobody may be able to write it later."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(
            f"rank {self._world.rank} of {self._world.size}, process {os.getpid()} on {socket.gethostname()}\n"
            f"last completed iteration: {self._completed()}\n"
            f"in: {self._doing}, without progress for --watchdog-timeout {self._seconds:g} s\n"
        )
        self._file.flush()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._seen > self._seconds:
                break
        if not self._ended.is_set():
            self._end_run()

    def _end_run(self) -> None:
        """Write what is known, say who holds the run up, and end this process."""
        faulthandler.cancel_dump_traceback_later()
        assert self._file is not None
        faulthandler.dump_traceback(self._file, all_threads=True)
        recorded = flight_recorder.dump(self._folder, self._world.rank) if self._world.size > 1 else None
        found = self._report.gather(self._doing, _PATIENCE_SECONDS)
        if found is not None:
            who = f"rank {self._world.rank} of {self._world.size}: " if self._world.size > 1 else ""
            read = f"; {flight_recorder.command(self._folder)} compares their last collectives" if recorded else ""
            print(
                f"error: {who}no progress for --watchdog-timeout {self._seconds:g} s: {found}. The stacks of every "
                f"rank are in {self._folder}/stacks_RANK.txt{read}",
                file=sys.stderr,
                flush=True,
            )
            self._report.spoken()
        os._exit(1)
