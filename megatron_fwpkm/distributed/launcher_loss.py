"""What a rank does when the agent of torchrun that started it is gone: without one, nobody would ever end it."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from ..processes import parent
from .launch_variables import Launch
from .liveness import within
from .rendezvous import name_ranks

_TELL_SECONDS = 2.0


class LauncherLoss:
    """Watches the agent from the moment of its making on, and ends this process within seconds of its loss."""

    def __init__(self, launch: Launch) -> None:
        """Begin to watch."""
        self._launch = launch
        self._ending = threading.Lock()
        self.tell: Callable[[str], None] | None = None
        """Records the end for the ranks of other nodes."""
        parent.watch(self._end)

    def end_if_gone(self) -> None:
        """Do not return when the agent is gone."""
        if parent.is_gone():
            self._end()

    def _end(self) -> None:
        self._ending.acquire()  # the thread that comes second waits here for the end
        launch = self._launch
        reason = f"torchrun (process {parent.AT_START} on {socket.gethostname()}), which started it, is gone"
        if launch.local_rank == 0:  # once on every node
            first = launch.rank - launch.local_rank
            here = name_ranks(list(range(first, first + launch.local_world_size)))
            verb = "ends" if launch.local_world_size == 1 else "end"
            print(f"{here} of {launch.world_size} {verb} here: {reason}", file=sys.stderr, flush=True)
        if (tell := self.tell) is not None:
            with suppress(Exception):  # the store may have been in the agent
                within(_TELL_SECONDS, lambda: tell(reason))
        os._exit(1)
