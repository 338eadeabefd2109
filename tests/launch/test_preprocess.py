"""A corpus in parts: which machine makes which, what is queued again, and what is refused."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import ROOT
from tests.launch.test_torchrun import check_refused, printed

ARGUMENTS = ["--input", "my texts", "--output-prefix", "data/web"]
TOOL = ["python-fake", "tools/preprocess_data.py", *ARGUMENTS]
TASK = {"SLURM_JOB_ID": "73", "SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "2", "SLURM_CPUS_PER_TASK": "5"}


@pytest.mark.parametrize("name", ["SHARD_INDEX", "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"])
def test_a_part_is_numbered_by_whoever_starts_it(launch, environment, name):
    process = launch("preprocess_shard.sh", environment | {name: "1", "NUM_SHARDS": "2"}, "--dry-run", *ARGUMENTS)
    assert printed(process) == [[*TOOL, "--num-shards", "2", "--resume", "--shard-id", "1"]]


def test_the_merge_has_the_flags_of_the_parts(launch, environment):
    process = launch("preprocess_shard.sh", environment | {"NUM_SHARDS": "2"}, "--merge", "--dry-run", *ARGUMENTS)
    assert printed(process) == [[*TOOL, "--num-shards", "2", "--resume", "--merge-shards"]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "NUM_SHARDS is not set"),
        ({"NUM_SHARDS": "1"}, "NUM_SHARDS=1 must be an integer of at least 2"),
        ({"NUM_SHARDS": "4"}, "SHARD_INDEX is not set"),
        ({"NUM_SHARDS": "4", "SHARD_INDEX": "last"}, "SHARD_INDEX=last must be an integer"),
        ({"NUM_SHARDS": "4", "JOB_COMPLETION_INDEX": "4"}, "SHARD_INDEX=4 must be between 0 and 3"),
    ],
)
def test_a_part_without_its_number_is_refused(launch, environment, settings, said):
    check_refused(launch("preprocess_shard.sh", environment | settings, "--dry-run", *ARGUMENTS), said)


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_merge_waits_for_the_array(launch, environment, record, dry_run):
    settings = environment | {"NUM_SHARDS": "4"}
    process = launch("preprocess_array.sbatch", settings, *["--dry-run"][: int(dry_run)], *ARGUMENTS)
    assert process.returncode == 0, process.stderr
    script = "examples/launch/preprocess_array.sbatch"
    array = ["sbatch", "--parsable", "--export=ALL", "--array=0-3", script, *ARGUMENTS]
    merge = ["sbatch", "--parsable", "--export=ALL", "--kill-on-invalid-dep=yes", "--dependency=afterok:JOB", script]
    merge += ["--merge", *ARGUMENTS]
    if dry_run:
        assert printed(process) == [array, merge] and not (record / "calls").exists()
        return
    words = " ".join(merge).replace("JOB", "71")
    expected = [f"NUM_SHARDS=4 {line}" for line in (" ".join(array), words)]
    assert (record / "calls").read_text().splitlines() == expected
    assert process.stdout.startswith("job 71 makes 4 parts; job 72")


def test_a_task_makes_its_part(launch, environment, record):
    settings = environment | TASK | {"NUM_SHARDS": "4", "SLURM_SUBMIT_DIR": str(ROOT)}
    assert launch("preprocess_array.sbatch", settings, *ARGUMENTS).returncode == 0
    told = (record / "ranks").read_text()
    assert "tools/preprocess_data.py" in told
    assert told.endswith("--workers 5 --num-shards 4 --resume --shard-id 2\n")
    assert not (record / "calls").exists()


def test_the_merge_is_a_task_too(launch, environment, record):
    settings = environment | {"SLURM_JOB_ID": "74", "NUM_SHARDS": "4", "SLURM_SUBMIT_DIR": str(ROOT)}
    assert launch("preprocess_array.sbatch", settings, "--merge", *ARGUMENTS).returncode == 0
    assert (record / "ranks").read_text().endswith("--num-shards 4 --resume --merge-shards\n")


@pytest.mark.parametrize(
    ("status", "restarts", "again"), [("137", "2", True), ("137", "3", False), ("1", "0", False), ("2", "0", False)]
)
def test_only_a_killed_task_is_queued_again(launch, environment, record, status, restarts, again):
    settings = environment | TASK | {"NUM_SHARDS": "4", "FAKE_STATUS": status, "SLURM_RESTART_COUNT": restarts}
    process = launch("preprocess_array.sbatch", settings | {"SLURM_SUBMIT_DIR": str(ROOT)}, *ARGUMENTS)
    calls = (record / "calls").read_text() if (record / "calls").exists() else ""
    assert ("scontrol requeue 71_2" in calls) is again
    assert process.returncode == (0 if again else int(status))


def test_a_task_at_its_time_limit_is_queued_again(environment, record):
    settings = environment | TASK | {"NUM_SHARDS": "4", "FAKE_TRAINS": "1", "FAKE_STATUS": "143"}
    settings |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_RESTART_COUNT": "9"}
    command = ["bash", str(ROOT / "examples/launch/preprocess_array.sbatch"), *ARGUMENTS]
    process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 100
    while not (record / "ranks").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)  # it sets its trap
    os.kill(process.pid, signal.SIGUSR1)
    assert "time limit is near" in process.communicate(timeout=100)[0] and process.returncode == 0
    assert (record / "saved").exists()
    assert shlex.split((record / "calls").read_text()) == ["scontrol", "requeue", "71_2"]
