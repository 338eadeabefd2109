"""Ranks that look for each other: who waits for whom is said soon, the wait ends, and nothing hangs."""

from __future__ import annotations

import dataclasses
import datetime
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch.distributed as dist

from megatron_fwpkm.distributed.launch_variables import Launch
from megatron_fwpkm.distributed.rendezvous import meet, name_ranks


def launch(rank: int, size: int, port: int, address: str = "127.0.0.1", agent: bool = False) -> Launch:
    return Launch(rank, size, rank, size, address, port, agent)


@contextmanager
def listening() -> Iterator[int]:
    """The port of a program that accepts connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refused(call: Callable[[], object], limit: float) -> str:
    begin = time.monotonic()
    with pytest.raises(ValueError) as caught:
        call()
    assert time.monotonic() - begin < limit
    return str(caught.value)


def test_all_ranks_meet() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores: dict[int, dist.Store] = {}

    def join(rank: int) -> None:
        stores[rank] = meet(launch(rank, 3, server.port, agent=True), 60)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(stores) == [0, 1, 2]
    stores[1].set("word", "hello")
    assert stores[2].get("word") == b"hello"


def test_a_missing_rank_is_named_and_the_wait_ends(capfd: pytest.CaptureFixture[str]) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    message = refused(lambda: meet(launch(1, 5, server.port, agent=True), 1.5, patience=0.3), 30)
    joined = f"1 of 5 ranks have joined at 127.0.0.1:{server.port}; missing: ranks 0, 2-4"
    assert message.startswith(f"gave up after 2 s: {joined}") or message.startswith(f"gave up after 1 s: {joined}")
    assert "--rendezvous-timeout-minutes" in message
    said = capfd.readouterr().err
    assert said.startswith("rank 1 of 5 has waited 0 s: ") and joined in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "address, reason",
    [
        ("127.0.0.1", r"rank 0 cannot be reached at 127.0.0.1:\d+ \(Connection refused\)"),
        ("no-such-host.invalid", r"the name MASTER_ADDR=no-such-host.invalid does not resolve"),
    ],
)
def test_no_way_to_rank_zero(address: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    call = lambda: meet(launch(1, 2, free_port(), address), 3, patience=0.5)  # noqa: E731
    with pytest.raises(ValueError, match=reason):
        call()
    assert "rank 1 of 2 has waited" in capfd.readouterr().err


def test_something_else_listens_there() -> None:
    with listening() as port:
        message = refused(lambda: meet(launch(1, 2, port), 3, patience=9), 30)
    assert f"the program that listens at 127.0.0.1:{port} is not the store of a run" in message


def test_the_port_is_taken() -> None:
    with listening() as port:
        message = refused(lambda: meet(launch(0, 2, port), 60), 20)
    assert message.startswith(f"MASTER_PORT={port} is in use by another program on this host")


def test_rank_zero_on_another_host_than_master_addr() -> None:
    # 192.0.2.0/24 is kept for documentation: nobody has it.
    message = refused(lambda: meet(launch(0, 2, free_port(), "192.0.2.1"), 2, patience=9), 30)
    assert "MASTER_ADDR=192.0.2.1 is not an address of this host" in message


def test_a_rank_that_is_started_twice() -> None:
    server = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=60)
    )
    server.add("attempt/0/fwpkm/joined/1", 1)
    assert " have RANK=1: " in refused(lambda: meet(launch(1, 2, server.port, agent=True), 20), 15)


def test_a_store_that_ends_while_ranks_are_missing() -> None:
    stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
    port, probe = stores[0].port, dist.TCPStore("127.0.0.1", stores[0].port, is_master=False, wait_for_workers=False)

    def end() -> None:
        """Take the store away once the rank has joined."""
        while probe.add("attempt/0/fwpkm/joined", 0) < 1:
            time.sleep(0.05)
        stores.clear()

    thread = threading.Thread(target=end)
    thread.start()
    said = refused(lambda: meet(launch(1, 2, port, agent=True), 30), 25)
    thread.join()
    assert said == f"the run's store at 127.0.0.1:{port} is gone: torchrun there has ended or given up while ranks " \
        "were missing; read its log"


def test_workers_that_torchrun_starts_again_do_not_meet_the_first_ones() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first = launch(0, 1, server.port, agent=True)
    meet(first, 20).set("word", "old")
    again = meet(dataclasses.replace(first, attempt=1), 20)
    assert not again.check(["word"])


def test_names_of_ranks() -> None:
    assert name_ranks([3]) == "rank 3"
    assert name_ranks([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
