"""Ranks talk through a store: words and answers, a silent node, clocks; and a step that hangs ends its process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from megatron_fwpkm.distributed.launch_variables import Launch
from megatron_fwpkm.preflight.clock import clock_offset
from megatron_fwpkm.preflight.exchange import Exchange

HOSTS = {0: "a", 1: "b", 2: "c"}


def on_nodes(
    function: Callable[[Exchange], Any], present: tuple[int, ...] = (0, 1, 2), timeout: float = 20
) -> list[Any]:
    """What `function` returns or raises on each of three nodes of one rank, of which some are there."""
    store, found = dist.HashStore(), dict[int, Any]()

    def call(rank: int) -> None:
        launch = Launch(rank, 3, 0, 1, "a", 29500, store_in_agent=False)
        try:
            found[rank] = function(Exchange(store, launch, HOSTS, timeout))
        except ValueError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=call, args=(rank,)) for rank in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found[rank] for rank in present]


def test_the_answer_to_all_words_reaches_everyone() -> None:
    def talk(exchange: Exchange) -> Any:
        return exchange.round("facts", {"n": exchange.launch.rank}, lambda words: {"sum": sum(w["n"] for w in words)})

    assert on_nodes(talk) == [{"sum": 3}] * 3


def test_a_silent_node_is_named_everywhere_in_time() -> None:
    begin = time.monotonic()
    said = on_nodes(lambda exchange: exchange.round("facts", {}, lambda words: {}), (0, 2), timeout=2)
    assert said == ["node 1 (b) has connected but not sent facts within 2 s: read the log there"] * 2
    assert time.monotonic() - begin < 60


def test_clocks_are_compared_with_that_of_node_zero() -> None:
    def measure(exchange: Exchange) -> float:
        ahead = {0: 0.0, 1: 40.0, 2: -7.0}[exchange.launch.rank]
        return clock_offset(exchange, lambda: time.time() + ahead)

    assert on_nodes(measure) == pytest.approx([0, 40, -7], abs=2)


def test_a_step_that_hangs_ends_its_process_with_a_word() -> None:
    program = (
        "import time\n"
        "from megatron_fwpkm.preflight.deadline import deadline\n"
        "with deadline(60, lambda: 'not said'): pass\n"
        "with deadline(0.2, lambda: 'node 1 (b): the disk', lambda said: print('report:', said, flush=True)):\n"
        "    time.sleep(60)\n"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (1, "error: node 1 (b): the disk\n")
    assert done.stdout == "report: node 1 (b): the disk\n" and time.monotonic() - begin < 59
