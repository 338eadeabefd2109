"""Names of processes that hold across hosts: a process id means something within one boot and PID namespace only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def process_start(pid: int) -> str | None:
    """When a process of this PID namespace began, in the kernel's clock ticks; None where it is gone or has ended.

    Together with the id it names one process, for ids are used again.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold blanks
    return None if fields[0] in "ZX" else fields[19]


def is_stopped(pid: int) -> bool:
    """Whether a process of this PID namespace is stopped by a signal or a debugger."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def process_space() -> str:
    """A name of this boot of this machine and of this PID namespace: where two agree, process ids can be looked up.

    Host names do not say it: containers and copied machines have the same ones. Where it cannot be known, or /proc is
    of another namespace than this process, the name is nobody else's.
    """
    try:
        if os.readlink("/proc/self") == str(os.getpid()):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        pass
    return f"unknown/{secrets.token_hex(8)}"
