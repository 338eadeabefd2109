"""Nodes of a cluster on one machine: each with its own network, host name and processes, joined by a bridge.

A node is a network namespace with an address and one end of a cable whose other end is plugged into a switch, a bridge
in a namespace of its own. What runs on a node sees its own host name and, as on another machine, no process of the
other nodes; files are shared. Needs root and iproute2. The machine's own network is not touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.test_pretrain import ROOT, environment

_PREFIX = "fwpkm"
_HOSTS_FOLDER = Path("/etc/netns")


def why_not() -> str:
    """Why there can be no namespaces on this machine; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed (iproute2, util-linux)"
    name = f"{_PREFIX}{os.getpid()}t"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"this machine does not allow network namespaces ({tried.stderr.strip()})"
    try:
        cable = ["ip", "-n", name, "link", "add", "name", "one", "type", "veth", "peer", "name", "other"]
        isolated = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"]
        for command in (cable, isolated):
            tried = subprocess.run(command, capture_output=True, text=True)
            if tried.returncode:
                return f"this machine does not allow `{' '.join(command)}` ({tried.stderr.strip()})"
    finally:
        _ip("netns", "del", name)
    return ""


class Program:
    """What was started on a node, with its output in a file."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process, self.output = process, output
        self.began = time.monotonic()
        self.ended: float | None = None

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def poll(self) -> int | None:
        """Its exit status once it has ended; notes when."""
        status = self.process.poll()
        if status is not None and self.ended is None:
            self.ended = time.monotonic()
        return status


class Node:
    """One node: a namespace, an address, a name."""

    def __init__(self, number: int, namespace: str, switch: str, folder: Path) -> None:
        self.number, self.namespace, self._folder = number, namespace, folder
        self.name, self.address = f"node-{'abcdefgh'[number]}", f"10.77.0.{number + 1}"
        self._plug = f"port{number}"
        self._programs: list[Program] = []
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "link", "add", "name", "eth0", "type", "veth", "peer", "name", self._plug, "netns", switch)
        _ip("-n", namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", switch, "link", "set", self._plug, "master", "bridge", "up")

    def start(self, command: Sequence[str], variables: Mapping[str, str] | None = None, shell: str = "") -> Program:
        """Run a command on this node; `shell` is done before it, in the same mount namespace."""
        output = self._folder / f"{self.name}_{len(self._programs)}.txt"
        prepare = f"echo {self.name} >/proc/sys/kernel/hostname; {shell} exec \"$@\""
        isolated = ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        words = ["ip", "netns", "exec", self.namespace, *isolated, "bash", "-c", prepare, "bash", *command]
        settings = environment() | {"PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": "eth0"} | dict(variables or {})
        with output.open("wb") as file:
            process = subprocess.Popen(
                words, env=settings, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self._programs.append(Program(process, output))
        return self._programs[-1]

    def processes(self) -> list[int]:
        """Everything that runs on this node."""
        told = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(word) for word in told.stdout.split()]

    def received(self) -> int:
        """Bytes that have come through its cable."""
        told = subprocess.run(["ip", "-n", self.namespace, "-s", "-j", "link", "show", "eth0"], capture_output=True)
        return int(json.loads(told.stdout)[0]["stats64"]["rx"]["bytes"])

    def kill(self) -> None:
        """Switch the node off: SIGKILL to everything, its programs are gone when this returns."""
        for number in self.processes():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for program in self._programs:
            program.process.wait(30)
            program.poll()

    def cut(self) -> None:
        """Take the cable out."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")


@contextmanager
def cluster(count: int, folder: Path) -> Iterator[list[Node]]:
    """Some nodes that reach each other by name and address; nothing of them is left in the end."""
    _remove_leftovers()
    own = f"{_PREFIX}{os.getpid()}"
    names = [f"{own}n{number}" for number in range(count)]
    nodes: list[Node] = []
    try:
        _write_hosts(names)
        _ip("netns", "add", f"{own}s")
        _ip("-n", f"{own}s", "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", f"{own}s", "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            nodes.append(Node(number, name, f"{own}s", folder))
        yield nodes
    finally:
        for node in nodes:
            node.kill()
        _remove([*names, f"{own}s"])


def wait_until(condition: Callable[[], bool], what: str, limit: float) -> None:
    """Return when the condition holds; raise AssertionError at the limit."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {limit:g} s"
        time.sleep(0.05)


def wait_for(programs: Sequence[Program], limit: float) -> list[int]:
    """The exit statuses of programs; AssertionError with their output when one has not ended at the limit."""
    end = time.monotonic() + limit
    while True:
        statuses = [program.poll() for program in programs]
        if None not in statuses:
            return [status for status in statuses if status is not None]
        if time.monotonic() > end:
            told = "\n".join(f"--- {program.output.name}\n{program.text[-3000:]}" for program in programs)
            raise AssertionError(f"not ended within {limit:g} s: {statuses}\n{told}")
        time.sleep(0.05)


def _write_hosts(names: Sequence[str]) -> None:
    """The file by which each node knows the names of all: `ip netns exec` lays it over the machine's own."""
    lines = ["127.0.0.1 localhost", *(f"10.77.0.{i + 1} node-{'abcdefgh'[i]}" for i in range(len(names)))]
    for name in names:
        (_HOSTS_FOLDER / name).mkdir(parents=True, exist_ok=True)
        (_HOSTS_FOLDER / name / "hosts").write_text("\n".join(lines) + "\n")


def _remove_leftovers() -> None:
    """What a test that was killed has left."""
    told = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for name in [line.split()[0] for line in told.splitlines() if line.startswith(_PREFIX)]:
        owner = name.removeprefix(_PREFIX).split("n")[0].rstrip("st")
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _remove([name])


def _remove(names: Sequence[str]) -> None:
    for name in names:
        for word in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(word), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(_HOSTS_FOLDER / name, ignore_errors=True)
    with suppress(OSError):
        _HOSTS_FOLDER.rmdir()  # where nobody else uses it


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
