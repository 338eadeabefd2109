"""Two runs never share a --save folder; a lock whose run is gone does not stand in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_fwpkm.checkpoint.lock import LOCK_NAME, owner_of_this_process, run_lock
from megatron_fwpkm.checkpoint.process_identity import process_start


def leave_lock(folder: Path, **changes: object) -> Path:
    path = folder / LOCK_NAME
    path.write_text(json.dumps({**owner_of_this_process(), **changes}))
    return path


def test_a_lock_is_held_and_given_back(tmp_path: Path) -> None:
    with run_lock(tmp_path) as path:
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_living_run_of_this_host_is_named(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        path = leave_lock(tmp_path, pid=other.pid, process_start=process_start(other.pid))
        message = rf"--save .* is in use by process {other.pid} on .*; if it has ended, delete .*{LOCK_NAME}"
        with pytest.raises(ValueError, match=message), run_lock(tmp_path):
            pass
        assert path.exists()
        other.kill()
        other.wait()
    with run_lock(tmp_path):  # the same lock, its process gone
        pass


def test_a_process_id_that_was_used_again_is_not_the_run(tmp_path: Path) -> None:
    leave_lock(tmp_path, pid=1, process_start="another time")
    with run_lock(tmp_path) as path:
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_lock_of_another_host_is_watched(tmp_path: Path) -> None:
    path = leave_lock(tmp_path, host="elsewhere")
    before = time.monotonic()
    with run_lock(tmp_path, stale_seconds=0.5):
        assert time.monotonic() - before >= 0.4
    path = leave_lock(tmp_path, host="elsewhere")
    code = f"import os, time\nfor _ in range(100):\n    time.sleep(0.05)\n    os.utime({str(path)!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as refresher:
        with pytest.raises(ValueError, match="in use by process .* on elsewhere"), run_lock(tmp_path, stale_seconds=3):
            pass
        refresher.kill()


def test_a_lock_that_was_replaced_is_left_alone(tmp_path: Path) -> None:
    with run_lock(tmp_path) as path:
        path.write_text("another run's")
    assert path.read_text() == "another run's"
