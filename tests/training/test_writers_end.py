"""Processes that write checkpoints end with their run: one that is killed, and one whose save failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.processes.process_identity import process_start
from tests.test_pretrain import environment, flags, write_dataset

LIMIT = 120


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


@contextmanager
def faulty(dataset: str, folder: Path, fault: dict[str, Any], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A run that saves every second iteration, in a session of its own; what it says goes to `folder`/output."""
    argv = flags(dataset, save=folder / "run", eval_iters=0, split="1,0,0", save_interval=2, **more)
    command = [sys.executable, "-m", "tests.training.faulty_run", json.dumps(fault), *argv]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def living(session: int) -> list[int]:
    """Processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and process_start(int(path.parent.name)) is not None:
                found.append(int(path.parent.name))
    return found


def all_end(session: int) -> bool:
    deadline = time.monotonic() + 60
    while living(session) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not living(session)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word about a parent's death")
@pytest.mark.parametrize("async_save", [None, True])
def test_writers_of_a_killed_run_end(dataset: str, tmp_path: Path, async_save: bool | None) -> None:
    mark = tmp_path / "writing"
    fault = {"rank": 0, "when": "write", "mark": str(mark)}
    with faulty(dataset, tmp_path, fault, train_iters=8, async_save=async_save) as process:
        deadline = time.monotonic() + LIMIT
        while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert mark.exists(), (tmp_path / "output").read_text()
        process.kill()
        process.wait()
        assert all_end(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word about a parent's death")
def test_other_writers_end_when_one_fails(dataset: str, tmp_path: Path) -> None:
    fault = {"rank": 0, "when": "write", "mark": str(tmp_path / "writing"), "failing": "model"}
    with faulty(dataset, tmp_path, fault, train_iters=8, async_save=True) as process:
        assert process.wait(LIMIT) == 1
        assert all_end(process.pid)
    said = (tmp_path / "output").read_text().partition("error: ")[2]
    assert said.startswith("iter_0000002 could not be written to "), said
    assert said.count("\n") == 1, said
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == []
