"""A process is killed in a run of single_node.sh: torchrun starts all again, and no number differs from a calm run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_fwpkm.checkpoint.manager import published
from tests.launch.conftest import ROOT
from tests.test_pretrain import environment, flags, losses, write_dataset

LIMIT = 240


def start(folder: Path, data: str, engine: list[str], restarts: int) -> subprocess.Popen[bytes]:
    """Two processes on this machine; output goes to `folder`/output, checkpoints to `folder`/run."""
    folder.mkdir()
    words = flags(
        data, save=folder / "run", resume=True, train_iters=120, save_interval=20, eval_iters=0, split="1,0,0", lr=1e-3,
    )  # fmt: skip
    settings = environment() | {
        "PYTHON": sys.executable, "GPUS_PER_NODE": "2", "PREFLIGHT": "0" if restarts else "1",
        "LOG_DIR": str(folder / "logs"),
        "TORCHRUN_MAX_RESTARTS": str(restarts),
    }  # fmt: skip
    command = ["bash", str(ROOT / "examples/launch/single_node.sh"), *words, *engine]
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(command, env=settings, stdout=output, stderr=output, start_new_session=True)


def kill_a_rank(launcher: int, run: Path) -> None:
    """Kill rank 1 once the run has a checkpoint."""
    end = time.monotonic() + LIMIT
    while not (run.exists() and published(run)):
        assert time.monotonic() < end, f"no checkpoint within {LIMIT} s"
        time.sleep(0.05)
    workers = [child for child in psutil.Process(launcher).children() if "pretrain.py" in child.cmdline()[2]]
    ranks = {worker.environ()["RANK"]: worker for worker in workers}
    assert sorted(ranks) == ["0", "1"]
    ranks["1"].kill()


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize("engine", [[], ["--engine", "deepspeed", "--zero-stage", "1"]], ids=["megatron", "deepspeed"])
def test_a_killed_process_costs_no_number(tmp_path: Path, engine: list[str]) -> None:
    data = write_dataset(tmp_path / "numbers")
    for name, restarts in (("calm", 0), ("killed", 1)):
        folder = tmp_path / name
        process = start(folder, data, engine, restarts)
        try:
            if restarts:
                kill_a_rank(process.pid, folder / "run")
            status = process.wait(LIMIT)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert status == 0, (folder / "output").read_text()[-5000:]
    assert "pre-flight passed" in (tmp_path / "calm" / "output").read_text()
    output = (tmp_path / "killed" / "output").read_text()
    assert f"resumed from {tmp_path}/killed/run/iter_" in output
    calm = losses(tmp_path / "calm" / "run")
    assert losses(tmp_path / "killed" / "run") == calm and 120 in calm
    # One file per stream, rank and attempt, in the folder of this node.
    kept = {str(path.relative_to(path.parents[2])) for path in (tmp_path / "killed/logs").rglob("stdout.log")}
    assert kept == {f"attempt_{attempt}/{rank}/stdout.log" for attempt in (0, 1) for rank in (0, 1)}
