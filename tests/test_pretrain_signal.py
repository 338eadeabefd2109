"""A run that is told to end finishes its step, saves and exits with 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_pretrain import ROOT, environment, flags, read_checkpoint, start, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Numbers to train on."""
    return write_dataset(tmp_path_factory.mktemp("signal") / "numbers")


def test_sigterm_finishes_the_step_and_saves(
    dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent in the second step."""
    from megatron_fwpkm.engines.megatron import MegatronEngine

    train_step, begun = MegatronEngine.train_step, []

    def stopped_in_the_second(*args: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*args)

    monkeypatch.setattr(MegatronEngine, "train_step", stopped_in_the_second)
    argv = flags(dataset, save=tmp_path, train_iters=100_000, eval_iters=0, log_interval=2, split="1,0,0")
    assert start(argv) == 0 and len(begun) == 2
    said = capfd.readouterr().out
    assert "stopped by SIGTERM: iteration 2" in said and f"saved {tmp_path}" in said
    assert read_checkpoint(tmp_path).iteration == 2


@pytest.mark.slow
def test_sigterm_to_a_process_ends_it_with_0(dataset: str, tmp_path: Path) -> None:
    argv = flags(dataset, save=tmp_path, train_iters=100_000, eval_iters=0, log_interval=2, split="1,0,0")
    command = [sys.executable, str(ROOT / "pretrain.py"), *argv]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "iteration" in line and "/100000" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0, "".join(seen) + rest
    assert "stopped by SIGTERM: iteration" in rest
    saved = read_checkpoint(tmp_path)
    assert f"saved {saved.path}" in rest
    assert saved.iteration >= 2
