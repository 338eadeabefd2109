"""A process and its parent: a process that loses its parent ends soon.

Slow imports are inside the functions, because entry points import this module first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

AT_START = os.getppid()
"""The process that started this one; entry points import this module first, while it is there."""
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


def is_gone() -> bool:
    """Whether the process that started this one has ended: another process is the parent now."""
    return os.getppid() != AT_START


def watch(when_gone: Callable[[], None]) -> None:
    """Call `when_gone` in a thread once the parent has ended.

    The kernel could send a signal instead, but it does so when the parent's *thread* ends, and launchers have several.
    """
    ended = threading.Event()

    def look() -> None:
        """Poll until the parent has ended."""
        while not is_gone():
            ended.wait(_POLL_SECONDS)
        when_gone()

    threading.Thread(target=look, name="watch of the parent", daemon=True).start()


def end_with_parent() -> None:
    """In a process that multiprocessing has spawned: end when its parent does, however that ended."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None

    def look() -> None:
        """Wait for the end of the parent, and end."""
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def program_that_stops_with_parent() -> Callable[[], None]:
    """What subprocess takes as `preexec_fn`: the program receives SIGTERM when the thread that started it ends."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    import ctypes

    prctl, starter = ctypes.CDLL(None).prctl, os.getpid()

    def in_program() -> None:
        """Ask the kernel, between fork and exec."""
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != starter:  # it ended before the kernel was told
            os._exit(1)

    return in_program


@contextmanager
def shielded(*signals: signal.Signals) -> Iterator[None]:
    """Processes started inside never receive these signals, neither while they import modules nor later.

    Ctrl-C goes to all processes of a terminal; the parent ends its workers.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # comes first with any other process, and unblocks signals
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # a process inherits what is blocked, and keeps it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@cache
def end_forks_with_parent() -> None:
    """From now on the kernel ends what is forked from here (loader workers, writers of checkpoints) with its parent."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    forking: list[int] = []

    def before() -> None:
        """Remember the forking process, where it is the main thread that forks."""
        # The signal comes when the forking thread ends: only a main thread lasts as long as its process.
        forking[:] = [os.getpid()] if threading.current_thread() is threading.main_thread() else []

    def in_child() -> None:
        """Ask the kernel to end this process with its parent."""
        if forking:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != forking[0]:  # it ended before the kernel was told
                os._exit(1)

    os.register_at_fork(before=before, after_in_child=in_child)
