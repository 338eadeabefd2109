"""torchrun's environment variables: alone, one of several, or refused with the variable, its value and what to do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from megatron_fwpkm.distributed.launch_variables import Launch, read_launch
from tests.test_pretrain import ROOT, environment, flags

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
PLACE = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "variables", [{}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}, PLACE, {"SLURM_STEP_NUM_TASKS": "1"}]
)
def test_a_process_that_runs_alone(variables: dict[str, str]) -> None:
    assert read_launch(variables) is None


def test_one_of_several() -> None:
    assert read_launch(TWO | PLACE) == Launch(1, 2, 1, 2, "node0", 29500, False)
    agent = read_launch(TWO | PLACE | {"TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert agent is not None and agent.store_in_agent and agent.meeting_place == "node0:29500" and agent.attempt == 0
    again = read_launch(TWO | PLACE | {"TORCHELASTIC_RESTART_COUNT": "2"})
    assert again is not None and again.attempt == 2


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set but RANK is not"),
        ({"RANK": "0"}, "RANK=0 is set but WORLD_SIZE is not"),
        ({**TWO, **PLACE, "RANK": "2"}, "RANK=2 must be less than WORLD_SIZE=2"),
        ({**TWO, **PLACE, "RANK": "-1"}, "RANK=-1 must be at least 0"),
        ({**TWO, **PLACE, "WORLD_SIZE": "abc"}, "WORLD_SIZE='abc' is not an integer"),
        ({**TWO, **PLACE, "WORLD_SIZE": ""}, "WORLD_SIZE='' is not an integer"),
        ({**TWO, **PLACE, "TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT='x' is not an integer"),
        ({**TWO, **PLACE, "LOCAL_RANK": "x"}, "LOCAL_RANK='x' is not an integer"),
        ({**TWO, **PLACE, "LOCAL_RANK": "2"}, "LOCAL_RANK=2 must be less than LOCAL_WORLD_SIZE=2"),
        (TWO, "MASTER_ADDR and MASTER_PORT are not"),
        ({**TWO, "MASTER_ADDR": "node0"}, "MASTER_PORT is not"),
        ({**TWO, **PLACE, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 must be between 1 and 65535"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 tasks .* but RANK is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 tasks"),
    ],
)
def test_what_does_not_fit_together(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_launch(variables)


@pytest.mark.slow
def test_a_world_without_ranks_does_not_train() -> None:
    """Whose start-up the variables reach: the run ends before it reads a dataset."""
    command = [sys.executable, "pretrain.py", *flags("nowhere")]
    done = subprocess.run(
        command, cwd=ROOT, env=environment() | {"WORLD_SIZE": "2"}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: WORLD_SIZE=2 is set but RANK is not"), done.stderr
    assert "RANK" not in os.environ
