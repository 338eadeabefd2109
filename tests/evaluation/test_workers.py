"""Tasks in several processes: all results, and failures that say what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron_fwpkm.evaluation.workers import run_in_processes


def _squares(offset: int):
    return lambda task: (task * task + offset, os.getpid(), torch.get_num_threads())


def _refuses(offset: int):
    raise ValueError(f"no model {offset}")


def _breaks(offset: int):
    return lambda task: 1 // (task - offset)


def _dies(offset: int):
    return lambda task: os.kill(os.getpid(), signal.SIGKILL)


def _names_itself(folder: str):
    (Path(folder) / str(os.getpid())).touch()
    return lambda task: time.sleep(100)


def _runs(pid: str) -> bool:
    """Whether a process is there and not just waiting to be buried."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.slow
def test_processes_end_with_the_one_that_is_killed(tmp_path):
    (tmp_path / "workers").mkdir()
    (tmp_path / "program.py").write_text(
        "from megatron_fwpkm.evaluation.workers import run_in_processes\n"
        "from tests.evaluation.test_workers import _names_itself\n"
        "if __name__ == '__main__':\n"
        f"    list(run_in_processes(2, range(9), _names_itself, ({str(tmp_path / 'workers')!r},)))\n"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, str(tmp_path / "program.py")], env={**os.environ, "PYTHONPATH": str(root)},
                          start_new_session=True) as process:  # fmt: skip
        try:
            workers = _wait_for(lambda: [path.name for path in (tmp_path / "workers").iterdir()], 2)
            assert all(map(_runs, workers))
            process.kill()
            process.wait()
            assert _wait_for(lambda: [pid for pid in workers if not _runs(pid)], 2) == workers
        finally:
            for pid in os.listdir(tmp_path / "workers"):
                if _runs(pid):
                    os.kill(int(pid), signal.SIGKILL)


def _wait_for(look, count: int) -> list[str]:
    """What `look` returns once it has this many, or after 100 seconds."""
    end = time.monotonic() + 100
    while len(found := look()) < count and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_every_task_is_done_once_in_all_processes():
    results = list(run_in_processes(2, range(7), _squares, (10,)))
    assert sorted(value for value, _, _ in results) == [task * task + 10 for task in range(7)]
    assert len({pid for _, pid, _ in results}) == 2 and os.getpid() not in {pid for _, pid, _ in results}
    assert {threads for _, _, threads in results} == {max(1, (os.cpu_count() or 1) // 2)}


@pytest.mark.parametrize(
    ("worker", "error", "said"),
    [
        (_refuses, ValueError, "no model 3"),
        pytest.param(_breaks, RuntimeError, r"(?s)a worker process failed.*ZeroDivisionError", marks=pytest.mark.slow),
        (_dies, ChildProcessError, "a worker process died with status -9 .*run the same command again"),
    ],
)
def test_failures_are_told(worker, error, said):
    with pytest.raises(error, match=said):
        list(run_in_processes(1, [3, 4], worker, (3,)))
