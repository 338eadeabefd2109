"""A folder of fake srun, scontrol and Python in front of PATH, and a way to call the launch scripts."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKES = {
    # Runs its command once per task with Slurm's variables and ends with the worst status. TERM kills the step.
    "srun": """
        echo "srun $*" >>"$RECORD/calls"
        for word in "$@"; do case $word in
          --nodes=*) nodes=${word#*=} ;; --ntasks-per-node=*) per_node=${word#*=} ;;
        esac; done
        while [[ "$1" == --* ]]; do shift; done
        pids=()
        for ((rank = 0; rank < nodes * per_node; rank++)); do
          SLURM_PROCID=$rank SLURM_LOCALID=$((rank % per_node)) SLURM_NTASKS=$((nodes * per_node)) \\
            SLURM_NTASKS_PER_NODE=$per_node "$@" &
          pids+=($!)
        done
        echo "${pids[@]}" >"$RECORD/tasks"
        trap 'kill -KILL "${pids[@]}"' TERM
        worst=0
        for pid in "${pids[@]}"; do
          while kill -0 "$pid" 2>/dev/null; do status=0; wait "$pid" || status=$?; done
          [ "$status" -le "$worst" ] || worst=$status
        done
        exit "$worst"
    """,
    "scontrol": """
        echo "scontrol $*" >>"$RECORD/calls"
        [ "$1 $2" != "show hostnames" ] || printf '%s\\n' $FAKE_HOSTS
    """,
    "scancel": """
        echo "scancel $*" >>"$RECORD/calls"
        [ "$1" = --signal=TERM ] && kill -TERM $(cat "$RECORD/tasks")
    """,
    "sbatch": """
        echo "NUM_SHARDS=$NUM_SHARDS sbatch $*" >>"$RECORD/calls"
        echo "$((70 + $(wc -l <"$RECORD/calls")));cluster"
    """,
    # Writes down its rank's variables and arguments, then trains until TERM when asked to; FAKE_STATUS is how it ends.
    "python-fake": """
        echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*" >>"$RECORD/ranks"
        if [ -n "${FAKE_TRAINS:-}" ]; then
          trap 'echo saved >>"$RECORD/saved"; exit "${FAKE_STATUS:-0}"' TERM
          while true; do sleep 0.05; done
        fi
        exit "${FAKE_STATUS:-0}"
    """,
}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Where the fakes write: calls, ranks, saved."""
    return tmp_path


@pytest.fixture
def environment(record: Path) -> dict[str, str]:
    """An environment without Slurm, GPUs or rendezvous, with the fakes first in PATH."""
    folder = record / "bin"
    folder.mkdir()
    for name, body in FAKES.items():
        (folder / name).write_text("#!/usr/bin/env bash\n" + body)
        (folder / name).chmod(stat.S_IRWXU)
    gone = (
        "SLURM", "MASTER_", "NODE", "NNODES", "RDZV", "GPUS_", "CUDA_", "TORCH", "RANK", "WORLD", "LOCAL_", "PREFLIGHT",
        "LOG_DIR", "NUM_SHARDS", "SHARD_INDEX", "JOB_COMPLETION_INDEX", "MAX_RETRIES", "IMAGE", "NAME",
    )  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith(gone)}
    return kept | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "RECORD": str(record),
        "PYTHON": "python-fake",
        "HOSTNAME": "node-x",
    }


@pytest.fixture
def slurm(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a job on two nodes of two GPUs."""
    return environment | {
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "FAKE_HOSTS": "node7 node8",
    }


Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def launch() -> Launch:
    """launch(script, environment, *arguments): the finished process."""

    def call(script: str, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        path = str(ROOT / "examples/launch" / script)
        return subprocess.run(["bash", path, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=30)

    return call
