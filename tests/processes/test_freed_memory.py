"""Freed memory stays with the process, unless its environment says what malloc should do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from megatron_fwpkm.processes import freed_memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")

_STEPS = """
import resource
import numpy as np
from megatron_fwpkm.processes.freed_memory import free_large_tables, keep_freed_memory
kept = keep_freed_memory()
if {then_free}:
    free_large_tables()
faults = []
for step in range(3):
    tensors = [np.ones(16 << 20, np.uint8) for _ in range(8)]  # more than malloc keeps by itself
    del tensors
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(kept, faults[2] - faults[1])
"""
_PAGES = (128 << 20) // os.sysconf("SC_PAGE_SIZE")


def _run(then_free: bool = False, **environment: str) -> tuple[str, int]:
    """What the function returned, and the page faults of the third step."""
    chosen = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _STEPS.format(then_free=then_free)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**chosen, **environment})
    kept, faults = done.stdout.split()
    return kept, int(faults)


def test_a_step_finds_the_pages_of_the_step_before() -> None:
    """Hardly a page comes from the kernel again."""
    kept, faults = _run()
    assert kept == "True"
    assert faults < _PAGES / 100


def test_large_tables_go_back_at_once() -> None:
    """Freed tables are no longer there for the next step, even where smaller tensors are kept."""
    _, faults = _run(then_free=True)
    assert faults > _PAGES / 100


def test_what_the_environment_says_stays() -> None:
    """A user's own settings of malloc are not replaced."""
    kept, _ = _run(MALLOC_TRIM_THRESHOLD_="1000000")
    assert kept == "False"


def test_another_library_of_c_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS or musl nothing is done."""
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: object())
    assert not freed_memory.keep_freed_memory()
