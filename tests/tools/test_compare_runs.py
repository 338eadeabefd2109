"""tools/compare_runs.py: two runs that did the same, and every way in which they can differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tools.in_process import run_tool

RECORD = {"kind": "train", "iteration": 20, "loss": 1.5, "seconds": 3.0, "memory": {"2": {"gate_mean": float("nan")}}}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of two runs that differ in their clock readings and in nothing else."""
    before, after = tmp_path / "before", tmp_path / "after"
    (before / "hf").mkdir(parents=True)
    (before / "needle").mkdir()
    (before / "checkpoints" / "iter_0000020" / "model").mkdir(parents=True)
    (before / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    (before / "needle" / "results.csv").write_text("length,exact_match\n256,1.0\n")
    save_file({"a": torch.arange(4.0), "b": torch.tensor([0.0])}, before / "hf" / "model.safetensors")
    shutil.copytree(before, after)
    save = {"kind": "save", "iteration": 10, "seconds": 0.5, "bytes": 7}
    clocks = {"seconds": 4.0, "tflops_per_device": 1.5, "mfu": 0.5, "memory_gb_per_second": 2.5}
    (after / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (save, {**RECORD, **clocks})))
    (before / "checkpoints" / "iter_0000020" / "model" / "x.safetensors").write_bytes(b"not compared")
    return before, after


def test_runs_that_did_the_same(runs, capsys):
    done = run_tool(capsys, "compare_runs", "--before", runs[0], "--after", runs[1])
    assert done.returncode == 0, done
    assert "3 files compared, all identical" in done.stdout and "2 tensors" in done.stdout


def change_loss(run: Path) -> None:
    (run / "metrics.jsonl").write_text(json.dumps({**RECORD, "loss": 1.5000000000000002}) + "\n")


def drop_record(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")


def change_result(run: Path) -> None:
    (run / "needle" / "results.csv").write_text("length,exact_match\n256,0.9\n")


def change_sign_of_zero(run: Path) -> None:
    save_file({"a": torch.arange(4.0), "b": torch.tensor([-0.0])}, run / "hf" / "model.safetensors")


def change_weight(run: Path) -> None:
    save_file({"a": torch.arange(4.0) + 0.25, "b": torch.tensor([0.0])}, run / "hf" / "model.safetensors")


def change_shape(run: Path) -> None:
    save_file({"a": torch.zeros(2, 2), "b": torch.tensor([0.0])}, run / "hf" / "model.safetensors")


def drop_weight(run: Path) -> None:
    save_file({"a": torch.arange(4.0)}, run / "hf" / "model.safetensors")


def drop_file(run: Path) -> None:
    (run / "hf" / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_loss, "record 1 differs: loss changed from 1.5 to 1.5000000000000002"),
        (drop_record, "the number of records changed from 1 to 0"),
        (change_result, "row 2 differs: 256,1.0 changed to 256,0.9"),
        (change_sign_of_zero, "1 tensor differs, the largest difference is 0 in b"),
        (change_weight, "1 tensor differs, the largest difference is 0.25 in a"),
        (change_shape, r"a changed from [4] torch.float32 to [2, 2] torch.float32"),
        (drop_weight, "b is in one file only"),
        (drop_file, "missing in"),
    ],
)
def test_every_difference_is_found(runs, capsys, change, said):
    change(runs[1])
    done = run_tool(capsys, "compare_runs", "--before", runs[0], "--after", runs[1])
    assert done.returncode == 1 and said in done.stdout and "3 files compared, 1 different" in done.stdout, done


def test_what_cannot_be_compared_is_refused(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    nothing = run_tool(capsys, "compare_runs", "--before", tmp_path / "empty", "--after", tmp_path / "empty")
    assert nothing.returncode == 1 and "there is nothing to compare" in nothing.stderr
    missing = run_tool(capsys, "compare_runs", "--before", runs[0], "--after", tmp_path / "nowhere")
    assert missing.returncode == 1 and "nowhere is not a folder" in missing.stderr
    (runs[1] / "metrics.jsonl").write_text("{")
    torn = run_tool(capsys, "compare_runs", "--before", runs[0], "--after", runs[1])
    assert torn.returncode == 1 and "metrics.jsonl, line 1 is not JSON" in torn.stderr
