"""Helper processes that end with the process that forked them, however that ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let the kernel kill this process, which multiprocessing has forked, when its parent is gone (Linux)."""
    parent = multiprocessing.parent_process()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if parent is None or prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent.pid:  # gone before the kernel knew
        os._exit(1)
