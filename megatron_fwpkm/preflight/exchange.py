"""What the ranks tell each other before there is a process group: through the run's store, every wait with a bound."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from ..distributed.launch_variables import Launch
from .trouble import name_nodes

_PAUSE_SECONDS = 0.02
_GRACE_SECONDS = 5.0

Words = list[dict[str, Any]]


class Exchange:
    """One rank's side of rounds in which every rank gives a word, and rank 0's answer to all of them reaches all."""

    def __init__(self, store: dist.Store, launch: Launch, hosts: dict[int, str], timeout: float) -> None:
        """`hosts` are the names of the nodes; a wait lasts at most `timeout` seconds."""
        self.store, self.launch, self.hosts, self.timeout = store, launch, hosts, timeout

    def round(self, name: str, word: dict[str, Any], answer: Callable[[Words], dict[str, Any]]) -> dict[str, Any]:
        """Rank 0's `answer` to the words of all ranks, by rank.

        Raises ValueError, on every rank that can still be reached, which names the nodes without a word.
        """
        self.store.set(f"preflight/{name}/{self.launch.rank}", json.dumps(word))
        if self.launch.rank == 0:
            words, missing = self._words(name)
            reply = {"missing": missing} if missing else {"answer": answer(words)}
            self.store.set(f"preflight/{name}/reply", json.dumps(reply))
        reply = json.loads(self.ask(f"preflight/{name}/reply", 2 * self.timeout + _GRACE_SECONDS, "node 0"))
        if "missing" in reply:
            raise ValueError(reply["missing"])
        return dict(reply["answer"])

    def ask(self, key: str, seconds: float, who: str) -> bytes:
        """The value of a key; raises ValueError when `who` has not written it within some seconds."""
        end = time.monotonic() + seconds
        while not self.store.check([key]):
            if time.monotonic() >= end:
                raise ValueError(f"{who} has not answered within {seconds:g} s: read its log")
            time.sleep(_PAUSE_SECONDS)
        return self.store.get(key)

    def leave(self) -> None:
        """Let nobody go while others still read: rank 0 may hold the store."""
        left = self.store.add("preflight/left", 1)
        end = time.monotonic() + _GRACE_SECONDS
        while self.launch.rank == 0 and left < self.launch.world_size and time.monotonic() < end:
            time.sleep(_PAUSE_SECONDS)
            left = self.store.add("preflight/left", 0)

    def _words(self, name: str) -> tuple[Words, str]:
        """The words of all ranks, or a sentence about those that are missing."""
        end = time.monotonic() + self.timeout
        keys = [f"preflight/{name}/{rank}" for rank in range(self.launch.world_size)]
        while not self.store.check(keys):
            if time.monotonic() >= end:
                silent = {self.launch.node_of(rank) for rank, key in enumerate(keys) if not self.store.check([key])}
                who = name_nodes(silent, self.hosts)
                verb = "has" if len(silent) == 1 else "have"
                return [], f"{who} {verb} connected but not sent {name} within {self.timeout:g} s: read the log there"
            time.sleep(_PAUSE_SECONDS)
        return [json.loads(self.store.get(key)) for key in keys], ""
