"""What can happen to a run: each ends with a message that names rank and file, no hang, the last checkpoint intact."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.checkpoint.fast_weight_store import FastWeightStore
from megatron_fwpkm.checkpoint.lock import LOCK_NAME, owner_of_this_process
from megatron_fwpkm.checkpoint.manager import published
from megatron_fwpkm.processes.process_identity import process_start
from tests.checkpoint.contents import in_memory
from tests.test_pretrain import ROOT, assert_same_checkpoint, environment, flags, start, write_dataset
from tests.training.faulty_run import ranks, strike

LIMIT = 150


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


def small(dataset: str, save: Path, **more: Any) -> list[str]:
    return flags(dataset, save=save, **{"eval_iters": 0, "split": "1,0,0", "save_interval": 2, **more})


def names(folder: Path) -> list[str]:
    return [path.name for path in published(folder)]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full as soon as a file has `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_background_save_holds_what_a_foreground_save_holds(dataset: str, tmp_path: Path) -> None:
    for name, more in (("sync", {}), ("async", {"async_save": True})):
        assert start(small(dataset, tmp_path / name, train_iters=5, keep_last=0, **more)) == 0
    assert names(tmp_path / "sync") == names(tmp_path / "async") == [f"iter_{i:07d}" for i in (2, 4, 5)]
    for folder in names(tmp_path / "sync"):  # training went on meanwhile: a torn copy would differ
        assert_same_checkpoint(
            read_checkpoint(tmp_path / "sync" / folder), read_checkpoint(tmp_path / "async" / folder)
        )
    assert start(small(dataset, tmp_path / "async", train_iters=6, async_save=True, resume=True)) == 0
    assert start(small(dataset, tmp_path / "sync", train_iters=6, resume=True)) == 0
    assert_same_checkpoint(read_checkpoint(tmp_path / "sync"), read_checkpoint(tmp_path / "async"))


@pytest.mark.parametrize("async_save", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_full_disk(dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], async_save: bool) -> None:
    assert start(small(dataset, tmp_path, train_iters=2)) == 0
    before = in_memory(read_checkpoint(tmp_path))
    with largest_file(20_000):
        again = small(dataset, tmp_path, train_iters=6, resume=True, async_save=async_save or None)
        assert start(again) == 1
    error = capfd.readouterr().err
    assert re.search(
        r"error: iter\S*( \d+)? could not be written to .*: rank 0: .*(File too large|RuntimeError)", error
    ), error
    assert re.search(r"the last complete checkpoint is \S+/iter_0000002", error)
    assert names(tmp_path) == ["iter_0000002"]
    assert_same_checkpoint(before, read_checkpoint(tmp_path))
    assert start(small(dataset, tmp_path, train_iters=4, resume=True)) == 0


def test_a_background_writer_that_is_killed(
    dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(small(dataset, tmp_path, train_iters=2)) == 0
    parent = os.getpid()

    def die(*args: Any) -> None:
        assert os.getpid() != parent, "written by the training process"
        os.kill(os.getpid(), signal.SIGKILL)

    names_of_releases = ("write_preloaded_data_multiproc", "write_preloaded_data_multithread")
    name = next(name for name in names_of_releases if hasattr(FileSystemWriterAsync, name))
    monkeypatch.setattr(FileSystemWriterAsync, name, staticmethod(die))
    assert start(small(dataset, tmp_path, train_iters=6, resume=True, async_save=True)) == 1
    error = capfd.readouterr().err
    assert re.search(
        r"could not be written to .*: rank 0: .*; the last complete checkpoint is .*iter_0000002", error
    ), error


def test_sigterm_during_a_save(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastWeightStore, "save", FastWeightStore.save)  # undone afterwards
    strike(FastWeightStore, "save", 2, signal.SIGTERM)
    assert start(small(dataset, tmp_path, train_iters=100)) == 0
    assert names(tmp_path)[-1] in ("iter_0000004", "iter_0000005")  # the step after the save may have begun
    read_checkpoint(tmp_path)


@pytest.mark.parametrize("async_save", [pytest.param(None, marks=pytest.mark.slow), True])
def test_sigterm_to_all_processes_of_a_job(dataset: str, tmp_path: Path, async_save: bool | None) -> None:
    """A scheduler tells helper processes, too; the save that follows must not need one that has gone."""
    argv = small(dataset, tmp_path / "run", train_iters=100_000, async_save=async_save)
    command = [sys.executable, str(ROOT / "pretrain.py"), *argv]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment(), start_new_session=True)
    try:
        deadline = time.monotonic() + LIMIT
        while not names(tmp_path / "run") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        before = names(tmp_path / "run")
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(LIMIT) == 0, (tmp_path / "output").read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "stopped by SIGTERM" in (tmp_path / "output").read_text()
    assert names(tmp_path / "run")[-1] > before[-1]
    read_checkpoint(tmp_path / "run")


def test_two_jobs_on_one_folder(dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = {**owner_of_this_process(), "pid": os.getppid(), "process_start": process_start(os.getppid())}
    (tmp_path / LOCK_NAME).write_text(json.dumps(other))
    assert start(small(dataset, tmp_path, train_iters=2)) == 1
    assert f"is in use by process {os.getppid()} on {socket.gethostname()}" in capfd.readouterr().err
    (tmp_path / LOCK_NAME).write_text(json.dumps({**other, "process_start": "long ago"}))
    assert start(small(dataset, tmp_path, train_iters=2)) == 0
    assert not (tmp_path / LOCK_NAME).exists()


@pytest.mark.slow
def test_kill_9_of_a_rank_in_mid_save(dataset: str, tmp_path: Path) -> None:
    argv = small(dataset, tmp_path, train_iters=8, tensor_model_parallel_size=2)
    ended = ranks(argv, {"rank": 1, "when": "save", "count": 2, "signal": "SIGKILL"}, tmp_path)
    assert ended[1][0] == -signal.SIGKILL
    assert ended[0][0] == 1, ended[0][1]
    assert re.search(
        r"error: rank 0 of 2 cannot continue: rank 1 \(process \d+ on \S+\) is gone: it was killed or crashed "
        r"\(last word: saving iteration 4, \d+ s ago\)",
        ended[0][1],
    ), ended[0][1]
    assert names(tmp_path) == ["iter_0000002"]
    assert read_checkpoint(tmp_path).iteration == 2
    # One process goes on with it: the lock of the run that is gone is recognised.
    assert start(small(dataset, tmp_path, train_iters=4, resume=True)) == 0


@pytest.mark.slow
def test_a_rank_that_stops_answering(dataset: str, tmp_path: Path) -> None:
    more = {"tensor_model_parallel_size": 2, "distributed_timeout_minutes": 0.25}
    begin = time.monotonic()
    ended = ranks(
        small(dataset, tmp_path, train_iters=8, **more),
        {"rank": 1, "when": "step", "count": 4, "signal": "SIGSTOP"},
        tmp_path,
    )
    assert time.monotonic() - begin < LIMIT
    assert ended[0][0] == 1
    assert re.search(
        r"rank 0 of 2 cannot continue: rank 1 \(process \d+ on \S+\) is stopped and does not answer "
        r"\(last word: iteration 4, \d+ s ago\)",
        ended[0][1],
    ), ended[0][1]
    assert names(tmp_path) == ["iter_0000002"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["step", "save"])
def test_kill_9_under_data_parallelism_and_background_saves(dataset: str, tmp_path: Path, when: str) -> None:
    more = {"use_distributed_optimizer": True, "async_save": True, "fwpkm_dp_sync": "average"}
    ended = ranks(
        small(dataset, tmp_path, train_iters=12, **more),
        {"rank": 1, "when": when, "count": 3, "signal": "SIGKILL"},
        tmp_path,
    )
    assert ended[1][0] == -signal.SIGKILL
    assert ended[0][0] == 1 and "is gone: it was killed or crashed" in ended[0][1], ended[0][1]
    good = read_checkpoint(tmp_path) if names(tmp_path) else None
    assert good is None or good.iteration in (2, 4)


def soak(dataset: str, folder: Path, faults: list[dict[str, Any]], size: int, **layout: Any) -> int:
    """Train undisturbed, and again with a kill -9 for every fault and a resume after it; both must end alike.

    Returns the kills that struck before the run's end.
    """

    def run(name: str, fault: dict[str, Any], **more: Any) -> list[int]:
        argv = small(dataset, folder / name, **layout, **more)
        return [status for status, _ in ranks(argv, fault and {**fault, "signal": "SIGKILL"}, folder, 600, size)]

    assert run("calm", {}) == [0] * size
    kills = 0
    for fault in [*faults, {}]:
        ended = run("wild", fault, resume=True, async_save=kills % 2 == 1 or None)
        if ended == [0] * size:
            break
        assert fault and ended[fault["rank"]] == -signal.SIGKILL, (fault, ended)
        kills += 1
    one, other = read_checkpoint(folder / "calm"), read_checkpoint(folder / "wild")
    assert one.iteration == other.iteration == layout["train_iters"]
    assert_same_checkpoint(one, other)
    return kills


@pytest.mark.slow
def test_short_soak(dataset: str, tmp_path: Path) -> None:
    """Killed in a save, and between two."""
    faults = [{"rank": 0, "when": "save", "count": 2}, {"rank": 0, "when": "step", "count": 4}]
    assert soak(dataset, tmp_path, faults, size=1, train_iters=9, save_interval=3) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_soak_of_random_kills_ends_like_the_undisturbed_run(dataset: str, tmp_path: Path) -> None:
    """200 steps over two ranks, killed again and again at random places: the same weights, tables and numbers."""
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "train_iters": 200, "save_interval": 10}
    generator = random.Random(7)
    faults = []
    for _ in range(8):
        when, count = generator.choice([("step", generator.randint(15, 60)), ("save", generator.randint(2, 5))])
        faults.append({"rank": generator.randint(0, 1), "when": when, "count": count})
    assert soak(dataset, tmp_path, faults, size=2, log_interval=50, **layout) >= 3
