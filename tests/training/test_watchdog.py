"""A rank that makes no progress: every rank leaves its stacks, and the run ends with the ranks that hold it up."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.distributed.hang_report import describe
from megatron_fwpkm.training.watchdog import FOLDER
from tests.test_pretrain import flags, start, write_dataset
from tests.training.faulty_run import ranks


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


def watched(dataset: str, folder: Path, **more: Any) -> list[str]:
    return flags(dataset, log_dir=folder, watchdog_timeout=5, eval_iters=0, split="1,0,0", **more)


def torchfrtrace(folder: Path) -> str:
    command = [str(Path(sys.executable).with_name("torchfrtrace")), "-p", "flight_recorder_", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("hang", ["python", pytest.param("gil", marks=pytest.mark.slow)])
def test_a_rank_that_hangs_in_a_step(dataset: str, tmp_path: Path, hang: str) -> None:
    begin = time.monotonic()
    ended = ranks(
        watched(dataset, tmp_path, tensor_model_parallel_size=2),
        {"rank": 1, "when": "step", "count": 4, "hang": hang},
        tmp_path,
    )
    assert time.monotonic() - begin < 90
    assert [status for status, _ in ended] == [1, 1], ended
    said = "".join(output for _, output in ended)
    assert said.count("no progress for --watchdog-timeout 5 s") == 1, said
    if hang == "python":
        assert re.search(r"rank 1 \(on \S+\) is in iteration 4, at faulty_run\.py:\d+ \(<lambda>\); rank 0", said), said
    else:
        assert re.search(r"rank 1 \(on \S+\) does not answer, .*; its last mark is iteration 4; rank 0", said), said
    for rank in (0, 1):
        stacks = (tmp_path / FOLDER / f"stacks_{rank}.txt").read_text()
        assert re.match(
            rf"rank {rank} of 2, process \d+ on \S+\nlast completed iteration: 3\nin: iteration 4, without", stacks
        ), stacks
        assert "in _step" in stacks and "watchdog.py" in stacks
    if hang == "python":
        read = torchfrtrace(tmp_path / FOLDER)
        assert "Not all ranks joining collective" in read and "missing ranks: {1}" in read, read


def test_a_run_that_makes_progress_leaves_nothing(dataset: str, tmp_path: Path) -> None:
    assert start(watched(dataset, tmp_path, train_iters=3)) == 0
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_the_places_that_hold_up_the_others_come_first() -> None:
    waiting = {"doing": "iteration 7", "place": "distributed_c10d.py:1 (all_reduce)", "host": "a"}
    told = {rank: waiting for rank in (0, 1, 2, 4)} | {3: {"doing": "iteration 7", "place": "x.py:2 (f)", "host": "b"}}
    silent = {5: {"doing": "iteration 6", "host": "c"}}
    assert describe(told, 6, silent) == (
        "rank 5 (on c) does not answer, not even its other threads: it is stopped, gone, cut off or stuck in a C call; "
        "its last mark is iteration 6; rank 3 (on b) is in iteration 7, at x.py:2 (f); ranks 0-2, 4 are in iteration "
        "7, at distributed_c10d.py:1 (all_reduce)"
    )
    two = {0: waiting, 1: {**waiting, "place": "x.py:2 (f)"}}
    assert describe(two, 2, {}).startswith("rank 1 (on a) is in iteration 7, at x.py:2 (f); rank 0 (on a) is in")
    many = {rank: {"doing": f"iteration {rank}", "place": "x", "host": "a"} for rank in range(9)}
    assert describe(many, 9, {}).endswith("; and 3 more places")
