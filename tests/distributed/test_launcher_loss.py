"""Ranks end when the agent that started them is gone, and what a process has forked ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.test_pretrain import ROOT

RANK = """
import os, sys, time
from megatron_fwpkm.processes import parent
from megatron_fwpkm.distributed.launch_variables import read_launch
from megatron_fwpkm.distributed.launcher_loss import LauncherLoss
LauncherLoss(read_launch(os.environ))
print(os.getpid(), flush=True)
time.sleep(60)
"""
AGENT = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
FORKS = """
import os, time
from megatron_fwpkm.processes.parent import end_forks_with_parent
end_forks_with_parent()
child = os.fork()
if child == 0 and (grandchild := os.fork()):
    print(os.getpid(), grandchild, flush=True)
time.sleep(60)
"""


def ends(pid: int, seconds: float) -> bool:
    """Whether a process is gone, or a zombie that nobody waits for, within the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False


@pytest.fixture
def begin() -> Callable[..., subprocess.Popen[str]]:
    """begin(words, **environment): a process whose output is read here."""

    def call(*words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", *words], cwd=ROOT, env={**os.environ, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return call


@pytest.mark.parametrize("local_rank", [0, 1])
def test_a_rank_ends_when_its_agent_is_killed(begin: Callable[..., subprocess.Popen[str]], local_rank: int) -> None:
    agent = begin(
        AGENT, RANK, RANK=str(2 + local_rank), WORLD_SIZE="4", LOCAL_RANK=str(local_rank), LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="node0", MASTER_PORT="29500", TORCHELASTIC_RUN_ID="run",
    )  # fmt: skip
    assert agent.stdout is not None and agent.stderr is not None
    rank = int(agent.stdout.readline())
    agent.kill()
    assert ends(rank, 5)
    said = agent.stderr.read()
    if local_rank == 0:
        assert said.startswith(f"ranks 2-3 of 4 end here: torchrun (process {agent.pid} on ")
        assert said.count("\n") == 1
    else:
        assert said == ""


def test_forked_processes_end_with_the_one_that_forked_them(begin: Callable[..., subprocess.Popen[str]]) -> None:
    process = begin(FORKS)
    assert process.stdout is not None
    child, grandchild = map(int, process.stdout.readline().split())
    process.kill()
    assert ends(child, 5) and ends(grandchild, 5)
