"""Which ranks hold a run up: every rank that makes no progress tells the others where it stands, and one of them says
it for all."""

from __future__ import annotations

import datetime
import json
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from .liveness import StoreLostError, within
from .rendezvous import name_ranks

_PREFIX = "fwpkm/hang/"
_STORE_SECONDS = 10.0
_NAMED = 6
"""Places that a report names."""


class HangReport:
    """One rank's part in the report of a run that hangs."""

    def __init__(self, rank: int, size: int, store: dist.Store | None) -> None:
        """`store` is a connection that no other thread uses; None in a run of one process."""
        self._rank, self._size, self._store = rank, size, store

    def gather(self, doing: str, patience: float) -> str | None:
        """Where all ranks stand, in words, `patience` seconds after this one has told; on one of the ranks.

        On the others None, once that one has `spoken`. The store lives in a process that may hang, too: then every rank
        speaks for itself.
        """
        here = {"doing": doing, "place": innermost_place(), "host": socket.gethostname()}
        store = self._store
        if store is None:
            return describe({self._rank: here}, self._size, {})
        try:
            within(_STORE_SECONDS, lambda: store.set(f"{_PREFIX}{self._rank}", json.dumps(here)))
            if within(_STORE_SECONDS, lambda: store.add(f"{_PREFIX}speaker", 1)) > 1:
                limit = datetime.timedelta(seconds=2 * patience)
                within(_STORE_SECONDS + 2 * patience, lambda: store.wait([f"{_PREFIX}spoken"], limit))
                return None
            time.sleep(patience)
            told, silent = within(_STORE_SECONDS, self._read_all)
        except (StoreLostError, RuntimeError, ValueError):
            return f"{describe({self._rank: here}, self._size, {})}; nothing is known of the other ranks"
        return describe(told, self._size, silent)

    def spoken(self) -> None:
        """Tell the waiting ranks that this one has said what `gather` gave it."""
        store = self._store
        if store is not None:
            with suppress(StoreLostError, RuntimeError, ValueError):
                within(_STORE_SECONDS, lambda: store.set(f"{_PREFIX}spoken", "1"))

    def _read_all(self) -> tuple[dict[int, dict[str, str]], dict[int, dict[str, str]]]:
        """What the ranks told, and the last words of those that told nothing."""
        assert self._store is not None
        told: dict[int, dict[str, str]] = {}
        silent: dict[int, dict[str, str]] = {}
        for rank in range(self._size):
            found = told if self._store.check([f"{_PREFIX}{rank}"]) else silent
            key = f"{_PREFIX}{rank}" if found is told else f"fwpkm/rank/{rank}"
            found[rank] = json.loads(self._store.get(key)) if self._store.check([key]) else {}
        return told, silent


def describe(told: dict[int, dict[str, str]], size: int, silent: dict[int, dict[str, str]]) -> str:
    """The places where ranks stand, those that hold up the others first: outside of a collective, with few ranks.

    `told` has `doing`, `place` and `host` by rank; `silent` the last `doing` and `host` of ranks that told nothing.
    """
    lines = [
        f"rank {rank} (on {word.get('host', 'an unknown host')}) does not answer, not even its other threads: it is "
        f"stopped, gone, cut off or stuck in a C call; its last mark is {word.get('doing', 'missing')}"
        for rank, word in silent.items()
    ]
    places: dict[tuple[str, str], list[int]] = {}
    for rank, word in told.items():
        places.setdefault((word["doing"], word["place"]), []).append(rank)

    def order(item: tuple[tuple[str, str], list[int]]) -> tuple[bool, int, list[int]]:
        """Ranks that wait in a collective of torch come last."""
        (_, place), ranks = item
        return place.startswith("distributed_c10d.py"), len(ranks), ranks

    for (doing, place), ranks in sorted(places.items(), key=order):
        who = name_ranks(ranks) if size > 1 else "the process"
        host = f" (on {told[ranks[0]]['host']})" if len(ranks) == 1 else ""
        lines.append(f"{who}{host} {'is' if len(ranks) == 1 else 'are'} in {doing}, at {place}")
    more = f"; and {len(lines) - _NAMED} more places" if len(lines) > _NAMED else ""
    return "; ".join(lines[:_NAMED]) + more


def innermost_place() -> str:
    """Where the main thread stands: `file.py:12 (function)`."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "an unknown place"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"
