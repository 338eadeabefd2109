"""The GPU suite and what it measures with Megatron: rehearsed on the CPU, refused in words where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.model import SIZES
from megatron_fwpkm.config.loading import parse_pretrain

ROOT = Path(__file__).resolve().parents[2]


def suite(out: Path, limit: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """The suite with this Python."""
    return subprocess.run(
        ["bash", "benchmarks/gpu_suite.sh", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=limit,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_to_do(tmp_path):
    run = suite(tmp_path / "out", 100)
    assert run.returncode == 1 and "sees no CUDA device; DEVICE=cpu rehearses" in run.stderr
    assert not (tmp_path / "out").exists()


def test_sizes_are_configurations():
    paper = parse_pretrain(SIZES["paper"]).config
    assert paper.fwpkm.layer_numbers == (3, 7, 11) and paper.model.window_size == (511, 0)
    assert (paper.training.micro_batch_size, paper.training.global_batch_size) == (8, 16)
    assert parse_pretrain(SIZES["tiny"]).config.fwpkm.layer_numbers == (2, 3)


@pytest.mark.slow
def test_the_cpu_rehearses_it(tmp_path):
    run = suite(tmp_path, 280, DEVICE="cpu")
    lines = (tmp_path / "summary.txt").read_text().splitlines()
    assert run.returncode == 0, run.stdout + run.stderr
    done = [line.split()[:2] for line in lines[: lines.index("")]]
    names = "machine tests stages te_numerics layer model memory inference tokenizer dataset training".split()
    assert done == [[name, "skipped" if name == "te_numerics" else "ok"] for name in names]
    assert (tmp_path / "te_numerics.log").read_text() == "skipped: Transformer Engine is not installed\n"
    assert not list(tmp_path.glob("layer_numerics*")), "no result is claimed for what did not run"
    goals = "\n".join(lines[lines.index("") :])
    assert "one layer, forward and backward, 2 sequences of 64 tokens" in goals and "not judged here" in goals
    assert "model with 2 memories over without" in goals
    model = json.loads((tmp_path / "model_tiny.json").read_text())["data"]["results"]
    assert [one["what"] for one in model] == ["without memory", "with memory"]
    assert model[1]["parameters"] > model[0]["parameters"]


@pytest.mark.slow
def test_a_step_that_fails_is_named_and_the_rest_goes_on(tmp_path):
    run = suite(tmp_path, 100, DEVICE="cpu", SECONDS_IN_ALL="20")
    summary = (tmp_path / "summary.txt").read_text()
    assert run.returncode == 1 and "failed: no time left" in summary and summary.startswith("machine      ok")
