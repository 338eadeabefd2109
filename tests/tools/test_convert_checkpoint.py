"""tools/convert_checkpoint.py: once as a user runs it, then its answers and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_fwpkm.conversion.export import hf_model_from_checkpoint
from tests.checkpoint.contents import write_checkpoint
from tests.layers.megatron import initialize

from .in_process import run_tool


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    initialize()
    root = tmp_path_factory.mktemp("run")
    write_checkpoint(root, 60, 64, None)
    return root


@pytest.mark.usefixtures("settings_of_tests")
def test_export_and_verify(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_tool(
        capsys, "convert_checkpoint", "export", "--checkpoint", checkpoint, "--output", tmp_path / "hf",
        "--dtype", "bfloat16",
    )  # fmt: skip
    assert done == (0, f"exported to {tmp_path / 'hf'}\n", "")
    command = ["verify", "--checkpoint", checkpoint, "--export", tmp_path / "hf", "--lengths", 1, 40]
    verified = run_tool(capsys, "convert_checkpoint", *command)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    lines = verified.stdout.splitlines()
    assert lines[-1] == "all 7 comparisons passed" and verified.stderr == ""
    assert lines[0] == "export of iteration 7, trained fast weights of replica 0"
    assert lines[2].startswith("Megatron, float64, random tokens, 40") and lines[2].endswith("<= 1e-09   ok")
    assert lines[3].startswith("Megatron, float32, random tokens, 1") and lines[3].endswith("<= 1e-05   ok")


def test_import_of_an_export(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What to do next stands below."""
    run_tool(capsys, "convert_checkpoint", "export", "--checkpoint", checkpoint, "--output", tmp_path / "hf")
    words = ["import", "--checkpoint", tmp_path / "hf", "--output", tmp_path / "run"]
    done = run_tool(capsys, "convert_checkpoint", *words)
    folder = tmp_path / "run" / "iter_0000000"
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == (
        f"imported to {folder}, which has no optimizer state. Continue with\n"
        f"python pretrain.py --config {folder}/config.yaml --load {tmp_path / 'run'} --data-path ... --save ...\n"
    )
    again = run_tool(capsys, "convert_checkpoint", *words, "--from", "hf")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1) and "already exists" in again.stderr


@pytest.fixture
def settings_of_tests() -> Iterator[None]:
    """Put back what the tool sets for its process: threads, determinism, parallel state."""
    yield
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    initialize()


@pytest.mark.usefixtures("settings_of_tests")
def test_a_damaged_export_fails(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool(capsys, "convert_checkpoint", "export", "--checkpoint", checkpoint, "--output", tmp_path / "hf")
    model, _ = hf_model_from_checkpoint(tmp_path / "hf")
    with torch.no_grad():
        model.model.norm.weight.add_(0.01)
    model.save_pretrained(tmp_path / "hf")
    command = ["verify", "--checkpoint", checkpoint, "--export", tmp_path / "hf", "--lengths", 40]
    damaged = run_tool(capsys, "convert_checkpoint", *command)
    assert damaged.returncode == 1
    assert "FAILED" in damaged.stdout and damaged.stdout.endswith("2 of 5 comparisons failed\n")


def test_errors_are_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = run_tool(
        capsys, "convert_checkpoint", "export", "--checkpoint", tmp_path / "nowhere", "--output", tmp_path / "hf"
    )
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert (
        nowhere.stderr.startswith(f"error: {tmp_path / 'nowhere'} is not a folder") and nowhere.stderr.count("\n") == 1
    )
    occupied = run_tool(capsys, "convert_checkpoint", "export", "--checkpoint", checkpoint, "--output", tmp_path)
    assert occupied.returncode == 1
    advice = "give another --output, or use --overwrite to replace it"
    assert occupied.stderr == f"error: {tmp_path} already exists; {advice}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["export", "--checkpoint", "x"], "--output"),
        (["export", "--checkpoint", "x", "--output", "y", "--fast-weights", "some"], "one of initial, trained, none"),
        (["verify", "--checkpoint", "x", "--export", "y", "--lengths", "0"], "0 must be at least 1"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_tool(capsys, "convert_checkpoint", *arguments)
    assert done.returncode == 2 and message in done.stderr
