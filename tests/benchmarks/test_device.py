"""The device benchmark and the GPU suite: rehearsed on the CPU, refused in words where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.run import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_cpu_rehearses_it(tmp_path, capsys):
    assert main(["device", "--device", "cpu", "--shape", "small", "--repeats", "1", "--output", str(tmp_path)]) == 0
    assert "| training |" in capsys.readouterr().out
    content = json.loads((tmp_path / "device_cpu_small.json").read_text())
    assert len(content["data"]["training"]["milliseconds"]) == 1 and content["provenance"]["commit"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_both_say_what_to_do(tmp_path, capsys):
    assert main(["device", "--output", str(tmp_path)]) == 1
    assert "--device cuda is not there; --device cpu" in capsys.readouterr().err
    suite = subprocess.run(
        ["bash", "benchmarks/gpu_suite.sh", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert suite.returncode == 1 and "sees no CUDA device; DEVICE=cpu rehearses" in suite.stderr
    assert not (tmp_path / "out").exists()
