"""How far the clocks of two nodes are apart: the clock of node 0 is asked, and half of the round trip subtracted."""

from __future__ import annotations

import time
from collections.abc import Callable

from .exchange import Exchange

ROUNDS = 5
TOLERANCE_SECONDS = 1.0
"""Clocks that differ by more confuse logs, file times and credentials."""


def clock_offset(exchange: Exchange, now: Callable[[], float] = time.time) -> float:
    """Seconds by which this node's clock is ahead of node 0's; called by the first rank of every node.

    The round with the shortest round trip counts. Raises ValueError when node 0 or a node does not answer.
    """
    launch, store = exchange.launch, exchange.store
    here = launch.node_of(launch.rank)
    if launch.rank == 0:
        for node in range(1, launch.nodes):
            for turn in range(ROUNDS):
                exchange.ask(f"preflight/clock/{node}/{turn}/question", exchange.timeout, f"node {node}")
                store.set(f"preflight/clock/{node}/{turn}/time", repr(now()))
        return 0.0
    best = (float("inf"), 0.0)
    for turn in range(ROUNDS):
        asked, begin = now(), time.monotonic()
        store.set(f"preflight/clock/{here}/{turn}/question", "")
        key = f"preflight/clock/{here}/{turn}/time"
        there = float(exchange.ask(key, exchange.timeout * launch.nodes, "node 0") if turn == 0 else store.get(key))
        trip = time.monotonic() - begin
        best = min(best, (trip, asked + trip / 2 - there))
    return best[1]
