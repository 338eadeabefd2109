"""The processes that torchrun has started for one evaluation: who they are, and how they wait for each other.

Free of torch until they meet.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from ..distributed.launch_variables import Launch, read_launch

_RENDEZVOUS_SECONDS = 1800.0
_POLL_SECONDS = 0.2


@dataclass
class RunRanks:
    """This process among those of an evaluation."""

    launch: Launch | None = None
    """None for a process that runs alone."""
    _store: Any = field(default=None, repr=False)

    @classmethod
    def of_environment(cls) -> RunRanks:
        """As torchrun's variables say. Raises ValueError where they contradict each other."""
        return cls(read_launch(os.environ))

    @property
    def rank(self) -> int:
        """Number of this process."""
        return 0 if self.launch is None else self.launch.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return 1 if self.launch is None else self.launch.world_size

    def wait_for_all(self, step: str) -> None:
        """Return once every process has called this with the same `step`, however long one of them takes.

        A process that fails does not leave the others waiting: torchrun ends them.

        Raises:
            ValueError: the processes have not met within half an hour.
        """
        if self.launch is None:
            return
        if self._store is None:
            from ..distributed.rendezvous import meet

            self._store = meet(self.launch, _RENDEZVOUS_SECONDS, option="the limit of an evaluation")
        self._store.add(_key(step), 1)
        self._wait_for(step, self.size)

    def leave(self) -> None:
        """Part from the others; the first process, which may hold their store, waits until all others have left."""
        if self._store is None:
            return
        if self.rank:
            self._store.add(_key("left"), 1)
        else:
            self._wait_for("left", self.size - 1)
        self._store = None

    def _wait_for(self, step: str, count: int) -> None:
        while self._store.add(_key(step), 0) < count:
            time.sleep(_POLL_SECONDS)


def _key(step: str) -> str:
    return f"fwpkm/evaluation/{step}"
