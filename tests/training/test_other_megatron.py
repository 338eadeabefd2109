"""A run goes on under another release of megatron-core, bit for bit, in both directions.

Needs the environment of another release, which `make setup MCORE=0.19.2` makes beside the usual one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from tests.test_pretrain import ROOT, assert_same_checkpoint, environment, flags, losses, write_dataset

_VERSION = "from importlib.metadata import version; print(version('megatron-core'))"
RUNS: dict[str, dict[str, Any]] = {
    "plain fp32": {},
    "plain bf16": {"bf16": True},
    "distributed fp32": {"use_distributed_optimizer": True},
    "distributed bf16": {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "bf16": True},
}


def _release(python: Path) -> str:
    return subprocess.run([str(python), "-c", _VERSION], capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture(scope="module")
def other_python() -> Path:
    """The Python of an environment with another release; the test is skipped where there is none."""
    own = _release(Path(sys.executable))
    for python in [ROOT / ".venv/bin/python", *sorted(ROOT.glob(".venv-mcore/*/bin/python"))]:
        if python.exists() and _release(python) not in ("", own):
            return python
    pytest.skip("no environment with another release of megatron-core: make setup MCORE=0.19.2")


def train(python: Path, dataset: str, save: Path, **more: Any) -> None:
    """pretrain.py in a process of that Python."""
    argv = flags(dataset, save=save, eval_iters=0, split="1,0,0", train_iters=8, log_interval=1, **more)
    run = subprocess.run(
        [str(python), str(ROOT / "pretrain.py"), *argv], capture_output=True, text=True, env=environment(), timeout=200
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert not run.stderr, f"what a release says at every start is to be left out:\n{run.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_under_the_other_release(other_python: Path, name: str, tmp_path: Path) -> None:
    dataset, options = write_dataset(tmp_path / "numbers"), RUNS[name]
    own = Path(sys.executable)
    train(own, dataset, tmp_path / "whole", **options)
    expected = read_checkpoint(tmp_path / "whole")
    for first, second, folder in ((own, other_python, "there"), (other_python, own, "back")):
        train(first, dataset, tmp_path / folder, exit_interval=4, **options)
        train(second, dataset, tmp_path / folder, resume=True, **options)
        assert losses(tmp_path / folder) == losses(tmp_path / "whole")
        assert_same_checkpoint(read_checkpoint(tmp_path / folder), expected)
