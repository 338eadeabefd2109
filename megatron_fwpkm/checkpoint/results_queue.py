"""Queues over which the writers of checkpoints answer; they live in a process of their own, one for all saves.

It imports nothing heavy, is never told to stop, and ends with its parent. megatron-core's own ends on the SIGTERM that
a scheduler sends to all processes of a job, and the save that the signal asks for fails without it.
"""

from __future__ import annotations

import multiprocessing
import signal
from functools import cache
from multiprocessing.managers import SyncManager
from queue import Queue
from typing import Any

from ..processes.parent import end_with_parent, shielded


def new_results_queue() -> Queue[Any]:
    """A queue that forked processes and this one may use."""
    return _manager().Queue()


@cache
def _manager() -> SyncManager:
    """The process with the queues. Starting it takes up to a second: once."""
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    with shielded(signal.SIGINT, signal.SIGTERM):
        manager.start(end_with_parent)
    return manager
