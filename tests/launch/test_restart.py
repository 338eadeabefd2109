"""A process is killed in a run of single_node.sh: torchrun starts all again, and no number differs from a calm run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.checkpoint.manager import published
from megatron_fwpkm.training.metrics import read_records
from tests.launch.conftest import ROOT
from tests.test_pretrain import assert_same_checkpoint, environment, flags, losses, write_dataset

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


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize(("on_nan", "restarts"), [("rewind", [(3, 1), (9, 2)]), ("skip", [(6, 1)])])
def test_left_out_data_stays_left_out_after_restarts(
    tmp_path: Path, on_nan: str, restarts: list[tuple[int, int]]
) -> None:
    """Samples 18 and 19 are spoilt, of iteration 5; in the seventh step of a process, rank 1 is killed."""
    data = write_dataset(tmp_path / "numbers")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, fault in (("calm", {}), ("killed", {"rank": 1, "when": "step", "count": 7, "attempts": 2})):
        words = flags(
            data, save=tmp_path / name, resume=True, train_iters=12, save_interval=3, log_interval=1, eval_iters=0,
            split="1,0,0", on_nan=on_nan, keep_last=0,
        )  # fmt: skip
        program = ["--max-restarts", "3", "-m", "tests.training.faulty_run", json.dumps(fault | {"spoil": [18, 20]})]
        done = subprocess.run(
            [*torchrun, *program, *words], capture_output=True, text=True, timeout=LIMIT, env=environment(), cwd=ROOT
        )
        assert done.returncode == 0, done.stderr[-5000:]
    records = read_records(tmp_path / "killed" / "metrics.jsonl")
    assert [(r["iteration"], r["restarts"]) for r in records if r["kind"] == "restart"] == restarts
    assert all(f"restart {number} by torchrun: the run continues at iteration" in done.stdout for _, number in restarts)
    assert sum(r["kind"] == on_nan for r in records) == 1
    assert losses(tmp_path / "killed") == losses(tmp_path / "calm")
    assert_same_checkpoint(*(read_checkpoint(tmp_path / name) for name in ("calm", "killed")))
