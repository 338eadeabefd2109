"""How the ranks of a run find each other: every wait says within ten seconds for whom and where, and ends."""

from __future__ import annotations

import datetime
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

from .launch_variables import Launch

FIRST_WORD_SECONDS = 10.0
"""A wait that lasts longer is announced; later every `NEXT_WORD_SECONDS`."""
NEXT_WORD_SECONDS = 30.0
_PROBE_SECONDS = 5.0
_HANDSHAKE_SECONDS = 20.0
_NAMED_NODES = 8


def meet(
    launch: Launch,
    limit: float,
    patience: float = FIRST_WORD_SECONDS,
    option: str = "--rendezvous-timeout-minutes",
) -> dist.Store:
    """The store of the run, once all its ranks have joined.

    Args:
        launch: this process among those of the run.
        limit: seconds after which a rank no longer waits.
        patience: seconds until the first word about a wait.
        option: the flag that sets the limit.

    Raises:
        ValueError: the port is taken, two processes have one rank, or the limit passed; names place and missing ranks.
    """
    wait = _Wait(launch, limit, patience, option)
    entrance = _Entrance(launch, limit)
    entrance.wait_for_store(wait)
    try:
        return _join(entrance, launch, wait)
    except dist.DistError as error:
        holder = "torchrun there" if launch.store_in_agent else "rank 0"
        raise ValueError(
            f"the run's store at {launch.meeting_place} is gone: {holder} has ended or given up while ranks "
            "were missing; read its log"
        ) from error


def _join(entrance: _Entrance, launch: Launch, wait: _Wait) -> dist.Store:
    """The store, once this rank and all others have said that they are there."""
    assert entrance.store is not None
    # The store of an agent outlives its workers and still holds the words of those that it has started before.
    store = dist.PrefixStore(f"attempt/{launch.attempt}", entrance.store) if launch.store_in_agent else entrance.store
    if store.add(f"fwpkm/joined/{launch.rank}", 1) > 1:
        raise ValueError(
            f"two processes of the run at {launch.meeting_place} have RANK={launch.rank}: another run uses this "
            "MASTER_PORT, or a rank was started twice"
        )
    store.set(_host_key(launch.rank), socket.gethostname())
    store.add("fwpkm/joined", 1)
    while (joined := store.add("fwpkm/joined", 0)) < launch.world_size:
        wait.go_on(lambda joined=joined: _missing(store, launch, joined) + entrance.warning)  # type: ignore[misc]
    return store


def number_by_arrival(launch: Launch, limit: float, option: str) -> int:
    """A rank from 1 on for a process that holds no store and that nobody has numbered, in the order of arrival.

    Raises ValueError as `meet` does.
    """
    entrance = _Entrance(launch, limit)
    entrance.wait_for_store(_Wait(launch, limit, FIRST_WORD_SECONDS, option))
    assert entrance.store is not None
    return int(entrance.store.add("fwpkm/numbered", 1))


def is_here(host: str, port: int) -> bool:
    """Whether a name or an address is one of this machine's; False where it does not resolve."""
    try:
        return any(_is_local(address) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except OSError:
        return False


class _Wait:
    """One rank's patience: announces what is waited for, and ends at the limit."""

    def __init__(self, launch: Launch, limit: float, patience: float, option: str) -> None:
        self._launch, self._limit, self._begin = launch, limit, time.monotonic()
        self._option = option
        self._next_word = patience
        self._pause = 0.01

    def go_on(self, reason: Callable[[], str]) -> None:
        """Sleep a little; say why when it is time to, and raise ValueError at the limit."""
        waited = time.monotonic() - self._begin
        if waited >= self._limit:
            raise ValueError(
                f"gave up after {waited:.0f} s: {reason()}. Check MASTER_ADDR and MASTER_PORT on every node and that "
                f"all ranks were started, or raise {self._option}"
            )
        if waited >= self._next_word:
            self._next_word = waited + NEXT_WORD_SECONDS
            print(
                f"rank {self._launch.rank} of {self._launch.world_size} has waited {waited:.0f} s: {reason()}",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(min(self._pause, max(self._limit - waited, 0.001)))
        self._pause = min(self._pause * 1.5, 0.25)


class _Entrance:
    """Connects to the run's store in a thread, for name look-ups and connections can block for minutes."""

    def __init__(self, launch: Launch, limit: float) -> None:
        self.store: dist.TCPStore | None = None
        self.trouble = f"no connection to {launch.meeting_place} yet"
        self.warning = ""
        """Why the others may not reach the store that this rank holds."""
        self._failure: str | None = None
        self._launch, self._end = launch, time.monotonic() + limit
        self._holds_store = launch.rank == 0 and not launch.store_in_agent
        threading.Thread(target=self._enter, name="rendezvous", daemon=True).start()

    def wait_for_store(self, wait: _Wait) -> None:
        """Return when there is a connection; raise ValueError at the limit, or for what waiting does not solve."""
        while self.store is None:
            wait.go_on(lambda: self.trouble)
            if self._failure is not None:
                raise ValueError(self._failure)

    def _enter(self) -> None:
        while self.store is None and self._failure is None and time.monotonic() < self._end:
            if (trouble := self._probe()) is not None:
                self.trouble = trouble
                time.sleep(0.5)
                continue
            self._connect()

    def _probe(self) -> str | None:
        """Why this rank cannot reach the store, found without the store's own client, whose messages are vague."""
        launch = self._launch
        try:
            found = socket.getaddrinfo(launch.master_addr, launch.master_port, type=socket.SOCK_STREAM)
        except OSError as error:
            return f"the name MASTER_ADDR={launch.master_addr} does not resolve ({error.strerror or error})"
        if self._holds_store:
            if not any(_is_local(address) for *_, address in found):
                self.warning = (
                    f". MASTER_ADDR={launch.master_addr} is not an address of this host ({socket.gethostname()}), "
                    "where rank 0 runs"
                )
            return None
        try:
            socket.create_connection((launch.master_addr, launch.master_port), _PROBE_SECONDS).close()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            where = "torchrun's store" if launch.store_in_agent else "rank 0"
            return f"{where} cannot be reached at {launch.meeting_place} ({reason})"
        self.trouble = f"the program that listens at {launch.meeting_place} is not the store of a run"
        return None

    def _connect(self) -> None:
        launch, left = self._launch, max(self._end - time.monotonic(), 1.0)
        try:
            self.store = dist.TCPStore(
                # Whoever holds the store listens at all addresses of the host; the others may know it by another one.
                "localhost" if self._holds_store else launch.master_addr,
                launch.master_port,
                launch.world_size,
                is_master=self._holds_store,
                timeout=datetime.timedelta(seconds=min(_HANDSHAKE_SECONDS, left)),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except (RuntimeError, ValueError) as error:
            if self._holds_store and ("EADDRINUSE" in str(error) or "address already in use" in str(error).lower()):
                self._failure = (
                    f"MASTER_PORT={launch.master_port} is in use by another program on this host: choose a free port, "
                    "or end that program"
                )
            time.sleep(0.5)


def _missing(store: dist.Store, launch: Launch, joined: int) -> str:
    missing = [rank for rank in range(launch.world_size) if not store.check([f"fwpkm/joined/{rank}"])]
    joined_where = f"{joined} of {launch.world_size} ranks have joined at {launch.meeting_place}"
    if launch.nodes == 1:
        return f"{joined_where}; missing: {name_ranks(missing)}"
    absent = sorted({launch.node_of(rank) for rank in missing})
    hosts = {
        launch.node_of(rank): store.get(_host_key(rank)).decode()
        for rank in range(launch.world_size)
        if store.check([_host_key(rank)])
    }
    here = ", ".join(f"{node} ({host})" for node, host in list(hosts.items())[:_NAMED_NODES])
    more = f" and {len(hosts) - _NAMED_NODES} more" if len(hosts) > _NAMED_NODES else ""
    return (
        f"{joined_where}; missing: {name_ranks(missing)}, on {name_numbers('node', absent)}, whose log may say why; "
        f"there: {'node' if len(hosts) == 1 else 'nodes'} {here}{more}"
    )


def _host_key(rank: int) -> str:
    return f"fwpkm/host/{rank}"


def name_ranks(ranks: list[int]) -> str:
    """`rank 3`, or `ranks 0-3, 7` for several in rising order."""
    return name_numbers("rank", ranks)


def name_numbers(thing: str, numbers: list[int]) -> str:
    """`node 3`, or `nodes 0-3, 7` for several in rising order, where the thing is a node."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    names = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"{thing if len(numbers) == 1 else thing + 's'} {names}"


def _is_local(address: tuple[object, ...]) -> bool:
    host = str(address[0])
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True
