"""The Slurm script under fake programs: what it takes from the job, what it refuses, how it queues again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT
from tests.launch.test_torchrun import check_refused

PORT = 10000 + 1234567 % 20000


def start(env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """The script in the background."""
    command = ["bash", str(ROOT / "examples/launch/slurm.sbatch"), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_ranks(record: Path, count: int) -> None:
    """Until `count` fake ranks are up."""
    for _ in range(400):
        if (record / "ranks").exists() and len((record / "ranks").read_text().splitlines()) == count:
            time.sleep(0.2)  # the last one sets its trap
            return
        time.sleep(0.05)
    raise AssertionError(f"{count} ranks did not start")


@pytest.mark.parametrize("nodes", [1, 2])
def test_dry_run_prints_the_steps(launch, slurm, record, nodes):
    settings = slurm | {"SLURM_JOB_NUM_NODES": str(nodes), "FAKE_HOSTS": "node7 node8"[: 6 * nodes - 1]}
    process = launch("slurm.sbatch", settings, "--dry-run", "--config", "a.yaml", "--save", "my runs")
    assert process.returncode == 0, process.stderr
    step = f"srun --nodes={nodes} --ntasks-per-node=2 --kill-on-bad-exit=1 --label bash examples/launch/slurm_rank.sh"
    assert process.stdout.splitlines()[-4:] == [
        f"export MASTER_PORT={PORT}",
        "export PYTHON=python-fake",
        f"{step} tools/preflight.py --config a.yaml --save my\\ runs --resume",
        f"{step} pretrain.py --config a.yaml --save my\\ runs --resume",
    ]
    assert "export MASTER_ADDR=node7" in process.stdout
    assert "srun" not in (record / "calls").read_text()


def test_every_rank_gets_its_place_from_the_job(launch, slurm, record):
    process = launch("slurm.sbatch", slurm, "--config", "a.yaml")
    assert process.returncode == 0, process.stderr
    told = (record / "ranks").read_text().splitlines()
    for program, lines in (("tools/preflight.py", told[:4]), ("pretrain.py", told[4:])):
        rest = f"node7:{PORT} {program} --config a.yaml --resume"
        assert sorted(lines) == [f"{rank} {rank % 2} 4 2 {rest}" for rank in range(4)]
    assert "requeue" not in (record / "calls").read_text()


def test_it_runs_from_the_spool_folder(slurm, record):
    copy = record / "slurm_script"
    copy.write_text((ROOT / "examples/launch/slurm.sbatch").read_text())
    command = ["bash", str(copy), "--dry-run", "-x"]
    process = subprocess.run(command, env=slurm, capture_output=True, text=True, cwd=record)
    assert process.returncode == 0, process.stderr
    assert "slurm_rank.sh" in process.stdout
    elsewhere = slurm | {"SLURM_SUBMIT_DIR": str(record)}
    process = subprocess.run(command, env=elsewhere, capture_output=True, text=True)
    check_refused(process, "is not the repository", "REPOSITORY")


def test_a_failed_run_keeps_its_status_and_is_not_queued_again(launch, slurm, record):
    process = launch("slurm.sbatch", slurm | {"FAKE_STATUS": "9", "PREFLIGHT": "0"}, "--config", "a.yaml")
    assert process.returncode == 9
    assert "requeue" not in (record / "calls").read_text()


def test_nothing_is_trained_where_the_preflight_fails(launch, slurm, record):
    process = launch("slurm.sbatch", slurm | {"FAKE_STATUS": "9"}, "--config", "a.yaml")
    assert process.returncode == 1
    assert "the pre-flight failed with status 9" in process.stderr
    assert "pretrain.py" not in (record / "ranks").read_text()
    assert "requeue" not in (record / "calls").read_text()


@pytest.mark.parametrize(("status", "preflight"), [("0", "1"), ("143", "1"), ("0", "0")])
def test_the_time_limit_queues_the_job_again(slurm, record, status, preflight):
    process = start(slurm | {"FAKE_TRAINS": "1", "FAKE_STATUS": status, "PREFLIGHT": preflight}, "--config", "a.yaml")
    wait_for_ranks(record, 4)
    os.kill(process.pid, signal.SIGUSR1)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 0, errors
    assert ("pretrain.py" in (record / "ranks").read_text()) is (preflight == "0")
    assert "scontrol requeue 1234567" in (record / "calls").read_text()


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_saves_on_every_rank(slurm, record, sent, requeued):
    process = start(slurm | {"FAKE_TRAINS": "1", "PREFLIGHT": "0"}, "--config", "a.yaml")
    wait_for_ranks(record, 4)
    os.kill(process.pid, sent)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert (record / "saved").read_text().splitlines() == ["saved"] * 4
    assert ("scontrol requeue 1234567" in (record / "calls").read_text()) is requeued
    assert "sav" in output


def test_a_run_that_cannot_save_is_not_queued_again(slurm, record):
    process = start(slurm | {"FAKE_TRAINS": "1", "FAKE_STATUS": "5", "PREFLIGHT": "0"}, "--config", "a.yaml")
    wait_for_ranks(record, 4)
    os.kill(process.pid, signal.SIGUSR1)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    assert "ended with status 5" in errors
    assert "requeue" not in (record / "calls").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SLURM_JOB_ID": ""}, ["SLURM_JOB_ID is not set", "sbatch"]),
        ({"SLURM_JOB_NODELIST": ""}, ["SLURM_JOB_NODELIST is not set"]),
        ({"SLURM_JOB_NUM_NODES": ""}, ["SLURM_JOB_NUM_NODES is not set"]),
        ({"FAKE_HOSTS": ""}, ["lists no host", "node[7-8]"]),
        ({"FAKE_HOSTS": "node7"}, ["the job has 2 nodes, but scontrol lists: node7"]),
        ({"FAKE_HOSTS": "localhost node8"}, ["means itself on every node"]),
        ({"SLURM_GPUS_ON_NODE": "", "CUDA_VISIBLE_DEVICES": ","}, ["must be a positive integer"]),
    ],
)
def test_what_the_job_does_not_say_is_refused(launch, slurm, record, change, said):
    process = launch("slurm.sbatch", slurm | change, "--dry-run", "--config", "a.yaml")
    check_refused(process, *said)


def test_a_rank_outside_srun_is_refused(launch, environment):
    check_refused(launch("slurm_rank.sh", environment, "--lr", "1"), "SLURM_PROCID is not set", "srun")
