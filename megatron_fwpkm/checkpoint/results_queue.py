"""Queues over which the writers of checkpoints answer; they live in a process of their own, one for all saves.

It imports nothing heavy, is never told to stop, and ends with its parent. megatron-core's own ends on the SIGTERM that
a scheduler sends to all processes of a job, and the save that the signal asks for fails without it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.managers import SyncManager
from queue import Queue
from typing import Any


def new_results_queue() -> Queue[Any]:
    """A queue that forked processes and this one may use."""
    return _manager().Queue()


@cache
def _manager() -> SyncManager:
    """The process with the queues. Starting it takes up to a second: once."""
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    resource_tracker.ensure_running()  # comes first with any other process, and unblocks signals
    # A process inherits what is blocked, and keeps it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        manager.start(_end_with_parent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return manager


def _end_with_parent() -> None:
    """Leave no process behind when a rank is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
