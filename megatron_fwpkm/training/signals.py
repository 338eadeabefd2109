"""SIGTERM and SIGINT stop a run cleanly: the step is finished, a checkpoint is saved, the exit status is 0."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

CHILD_GRACE_SECONDS = 300


class StopSignals:
    """Context manager: the first SIGTERM or SIGINT is a request to stop, the second ends the process at once.

    Ctrl-C and a scheduler's SIGTERM also reach forked children (loader workers). They continue, because the step that
    is being finished may need them, and end with their parent, or after CHILD_GRACE_SECONDS.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Remember which signals to watch; nothing is installed before `__enter__`."""
        self._signals = signals
        self._previous: dict[signal.Signals, object] = {}
        self._owner = os.getpid()
        self.received: signal.Signals | None = None
        """The first signal that arrived, or None."""

    def __enter__(self) -> StopSignals:
        """Install the handlers (main thread only) and remember the previous ones."""
        self._owner = os.getpid()
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            signal.alarm(CHILD_GRACE_SECONDS)  # SIGALRM's default action ends the process
            return
        if self.received is None:
            self.received = signal.Signals(number)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
