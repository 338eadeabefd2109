"""Two runs never share a --save folder; a lock whose run is gone does not stand in the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_fwpkm.checkpoint import lock
from megatron_fwpkm.checkpoint.lock import LOCK_NAME, RunLock, owner_of_this_process, run_lock
from megatron_fwpkm.processes.process_identity import process_space, process_start

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
HOLD = (
    "import sys; from pathlib import Path; from megatron_fwpkm.checkpoint import lock\n"
    "lock.REFRESH_SECONDS = 0.1\n"
    "with lock.run_lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); input()\n"
)


def leave_lock(folder: Path, name: str = LOCK_NAME, token: str = "0123456789abcdef", **changes: object) -> Path:
    path = folder / name
    path.write_text(json.dumps({**owner_of_this_process(), "token": token, "beat": "000000000000", **changes}))
    return path


def leave_old_lock(folder: Path, **changes: object) -> Path:
    """As commit d37be23 wrote it; its owner sets the file's time every 15 s."""
    owner = owner_of_this_process()
    del owner["process_space"]
    path = folder / LOCK_NAME
    path.write_text(json.dumps({**owner, **changes}))
    return path


@contextmanager
def held_by_another(folder: Path, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder."""
    command = [*prefix, sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
        other.kill()


def test_a_lock_is_held_and_given_back(tmp_path: Path) -> None:
    with run_lock(tmp_path) as held:
        assert json.loads(held.path.read_text())["pid"] == os.getpid()
        held.check()
    assert list(tmp_path.iterdir()) == []


def test_a_living_run_of_this_host_is_named(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as other:
        message = rf"--save .* is in use by process {other.pid} on .*; if it has already ended, delete .*{LOCK_NAME}"
        begin = time.monotonic()
        with pytest.raises(ValueError, match=message), run_lock(tmp_path, stale_seconds=60):
            pass
        other.kill()
        other.wait()
        with run_lock(tmp_path, stale_seconds=60):  # the same lock, its process gone
            pass
        assert time.monotonic() - begin < 30, "watched what the kernel knows"


def test_a_process_id_that_was_used_again_is_not_the_run(tmp_path: Path) -> None:
    leave_lock(tmp_path, pid=1, process_start="another time")
    with run_lock(tmp_path) as held:
        assert json.loads(held.path.read_text())["pid"] == os.getpid()


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0,
    reason="PID namespaces cannot be made here",
)
def test_a_run_in_another_pid_namespace_keeps_its_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "megatron_fwpkm")
    with held_by_another(tmp_path, *UNSHARE) as other:
        before = (tmp_path / LOCK_NAME).read_text()
        with pytest.raises(ValueError, match=r"is in use by process 1 on "), run_lock(tmp_path, stale_seconds=20):
            pass
        owners = [json.loads(text) for text in (before, (tmp_path / LOCK_NAME).read_text())]
        assert owners[0]["token"] == owners[1]["token"], "another lock by now"
        other.kill()
    assert "which cannot be checked from here: waiting up to 20 s for the counter in run.lock to change" in (
        caplog.text
    )
    with run_lock(tmp_path, stale_seconds=0.5):  # nobody advances it any more
        pass


def test_no_clock_decides(tmp_path: Path) -> None:
    """The counter moves, the file's time stays where an owner's clock that is slow has set it."""
    path = leave_lock(tmp_path, process_space="another", host="elsewhere")
    code = (
        "import os, sys, time, pathlib\n"
        "path = pathlib.Path(sys.argv[1]); text = path.read_text()\n"
        "os.utime(path, (1e9, 1e9)); print('set', flush=True)\n"
        "for beat in range(2000):\n"
        "    time.sleep(0.05)\n"
        "    file = os.open(path, os.O_RDWR); os.pwrite(file, text.replace('0' * 12, f'{beat:012d}').encode(), 0)\n"
        "    os.utime(path, (1e9, 1e9)); os.close(file)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None and owner.stdout.readline()
        with pytest.raises(ValueError, match="in use by process .* on elsewhere"), run_lock(tmp_path, stale_seconds=20):
            pass
        owner.kill()
    os.utime(path, (4e9, 4e9))  # from the future
    with run_lock(tmp_path, stale_seconds=0.3):
        pass


def test_process_ids_of_another_namespaces_proc_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_space() == process_space()
    monkeypatch.setattr(os, "readlink", lambda path: "1" if path == "/proc/self" else "pid:[1]")
    assert process_space() != process_space()


def test_a_counter_must_stand_still_for_as_long_as_was_said(tmp_path: Path) -> None:
    leave_lock(tmp_path, process_space="another")  # of this host's name, and a process that runs here under this id
    before = time.monotonic()
    with run_lock(tmp_path, stale_seconds=0.5):
        assert time.monotonic() - before >= 0.5


def test_the_owner_advances_its_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 0.02)
    with run_lock(tmp_path) as held:
        seen = {json.loads(held.path.read_text())["beat"]}
        deadline = time.monotonic() + 100
        while len(seen) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
            seen.add(json.loads(held.path.read_text())["beat"])
    assert len(seen) >= 3


def test_locks_of_earlier_versions(tmp_path: Path) -> None:
    parent = {"pid": os.getppid(), "process_start": process_start(os.getppid())}
    leave_old_lock(tmp_path, **parent)
    with pytest.raises(ValueError, match=f"in use by process {os.getppid()} on "), run_lock(tmp_path):
        pass
    path = leave_old_lock(tmp_path, host="elsewhere")
    code = f"import os, time\nfor _ in range(1000):\n    time.sleep(0.05)\n    os.utime({str(path)!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as refresher:
        with pytest.raises(ValueError, match="process .* on elsewhere"), run_lock(tmp_path, stale_seconds=20):
            pass
        refresher.kill()
    for text in (path.read_text(), json.dumps({**json.loads(path.read_text()), "pid": 1}), "", "[]", '{"pid": "x"}'):
        path.write_text(text)
        with run_lock(tmp_path, stale_seconds=0.3) as held:
            assert json.loads(held.path.read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []


def test_of_two_that_take_over_one_gets_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A has seen that the run is gone; B takes over before A does."""
    leave_lock(tmp_path, process_start="long ago", pid=1)
    judge, taken = lock._is_gone, []

    def slow(found: lock._Found, path: Path, stale_seconds: float) -> bool:
        if taken:  # A looks again, at B's lock
            raise ValueError(f"in use, {found.token == taken[0].token}")
        monkeypatch.setattr(lock, "_is_gone", judge)
        taken.append(lock._acquire(path, stale_seconds))
        monkeypatch.setattr(lock, "_is_gone", slow)
        return True

    monkeypatch.setattr(lock, "_is_gone", slow)
    with pytest.raises(ValueError, match="in use, True"), run_lock(tmp_path):
        pass
    taken[0].check()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]
    taken[0].give_back()
    assert list(tmp_path.iterdir()) == []


def test_many_that_take_over_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from megatron_fwpkm.checkpoint import lock\n"
        "input()\n"
        "try:\n"
        "    with lock.run_lock(Path(sys.argv[1]), stale_seconds=0.5):\n"
        "        print('held', flush=True); input()\n"
        "except ValueError:\n"
        "    print('refused', flush=True)\n"
    )
    leave_lock(tmp_path, process_space="another")
    command = [sys.executable, "-c", code, str(tmp_path)]
    takers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("\n")
    said = [taker.stdout.readline() for taker in takers if taker.stdout is not None]
    assert sorted(said) == ["held\n"] + 3 * ["refused\n"]
    for taker in takers:
        taker.communicate("\n", timeout=30)


@pytest.mark.parametrize("alive", [True, False])
def test_a_taker_that_died_half_way(tmp_path: Path, alive: bool) -> None:
    """It has linked its lock, and not yet moved it to run.lock: the lock that counts is its."""
    leave_lock(tmp_path, token="a" * 16, pid=1, process_start="long ago")
    other = os.getppid() if alive else 1
    began = process_start(other) if alive else "later"
    leave_lock(tmp_path, f"{LOCK_NAME}.{'a' * 16}", "b" * 16, pid=other, process_start=began)
    if alive:
        with pytest.raises(ValueError, match=f"in use by process {other} on"), run_lock(tmp_path):
            pass
        assert len(list(tmp_path.iterdir())) == 2
    else:
        with run_lock(tmp_path) as held:
            assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]
            held.check()


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    leave_lock(tmp_path, pid=1, process_start="long ago")
    with run_lock(tmp_path) as held:
        held.advance()
        assert json.loads(held.path.read_text())["beat"] == f"{1:012d}"
        assert not RunLock(held.path).place(held.path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_taken_over_is_left_alone_and_said(tmp_path: Path) -> None:
    with run_lock(tmp_path) as held:
        held.path.unlink()
        leave_lock(tmp_path, host="elsewhere")
        held.advance()
        with pytest.raises(ValueError, match=rf"--save {tmp_path} was taken over by process \d+ on elsewhere"):
            held.check()
    assert json.loads((tmp_path / LOCK_NAME).read_text())["host"] == "elsewhere"
