"""The GPU suite and what it measures with Megatron: rehearsed on the CPU, refused in words where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.model import SIZES
from benchmarks.run import main
from megatron_fwpkm.config.loading import parse_pretrain

ROOT = Path(__file__).resolve().parents[2]


def suite(
    out: Path, limit: float, environment: Mapping[str, str] = os.environ, **changes: str
) -> subprocess.CompletedProcess[str]:
    """The suite with this Python."""
    return subprocess.run(
        ["bash", "benchmarks/gpu_suite.sh", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=limit,
        env={**environment, "PYTHON": sys.executable, **changes},
    )  # fmt: skip


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    run = suite(tmp_path / "out", 100)
    assert run.returncode == 1 and "sees no CUDA device; DEVICE=cpu rehearses" in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_ends_it_at_once(tmp_path):
    (tmp_path / "python").write_text(RECORDER)
    (tmp_path / "python").chmod(0o755)
    changes = {"PYTHON": str(tmp_path / "python"), "COMMANDS": str(tmp_path / "commands")}
    run = suite(tmp_path / "python" / "out", 60, **changes)
    assert run.returncode == 2 and "Not a directory" in run.stderr and not (tmp_path / "commands").exists()


def test_sizes_are_configurations():
    paper = parse_pretrain(SIZES["paper"]).config
    assert paper.fwpkm.layer_numbers == (3, 7, 11) and paper.model.window_size == (511, 0)
    assert (paper.training.micro_batch_size, paper.training.global_batch_size) == (8, 16)
    assert parse_pretrain(SIZES["tiny"]).config.fwpkm.layer_numbers == (2, 3)


STEPS = (
    *("machine", "tests", "repeats", "stages", "layer", "model", "layer_graphs", "model_graphs", "te_numerics"),
    *("memory", "inference", "memcheck", "racecheck", "tokenizer", "dataset", "training"),
)
"""Of the suite, in their order."""
RECORDER = """#!/bin/sh
case "$1" in
  -c) exit 0 ;;
  -) cat >/dev/null; exit 0 ;;
esac
echo "$@" >>"$COMMANDS"
case "$*" in *repeated_launches*) echo "NOT EQUAL"; exit 1 ;; *layer_numerics*) exit 3 ;; esac
"""
"""Stands for a Python: notes what it is given; two of the steps do not succeed."""


def packed(out: Path) -> dict[str, str]:
    """Text of every file in the archive by its name, which begins with the name of the archive."""
    with tarfile.open(out / "gpu_suite.tar.gz") as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        return {file.name: archive.extractfile(file).read().decode(errors="replace") for file in files}  # type: ignore[union-attr]


def statuses(summary: str) -> dict[str, str]:
    """Step -> status."""
    lines = summary.split("\n\n")[0].splitlines()
    return {line[:12].strip(): line[12:-7].strip() for line in lines}


def test_every_step_runs_whatever_the_others_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "python").write_text(RECORDER)
    (tmp_path / "compute-sanitizer").write_text('#!/bin/sh\necho "sanitizer $1 $2" >>"$COMMANDS"\n')
    for name in ("python", "compute-sanitizer"):
        (tmp_path / name).chmod(0o755)
    commands, path = tmp_path / "commands", f"{tmp_path}:{os.environ['PATH']}"
    run = suite(tmp_path / "out", 60, PYTHON=str(tmp_path / "python"), COMMANDS=str(commands), PATH=path)
    assert run.returncode == 1, run.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["gpu_suite.tar.gz", "summary.txt"]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    bad = {"repeats": "failed: 1", "te_numerics": "skipped"}
    assert statuses(summary) == {step: bad.get(step, "ok") for step in STEPS}
    files = packed(tmp_path / "out")
    assert files["gpu_suite/repeats.log"] == "NOT EQUAL\n" and files["gpu_suite/summary.txt"] == summary
    done = commands.read_text().splitlines()
    assert "sanitizer --tool memcheck" in done and "sanitizer --tool racecheck" in done
    for flags in (line.split()[2:] for line in done if line.startswith("-m benchmarks.run ")):
        with pytest.raises(SystemExit):
            main([*flags, "--repeats", "0"])
        assert "--repeats 0 must be at least 1" in capsys.readouterr().err, f"{flags} are not understood"


def test_patience_is_for_the_whole_and_red_tests_are_not_run_again(tmp_path: Path) -> None:
    red = RECORDER.replace("*repeated_launches*", "*benchmarks.green*")
    limits = '#!/bin/sh\necho "$3" >>"$COMMANDS.limits"\nshift 3\nexec "$@"\n'
    for name, text in (("python", red), ("timeout", limits)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    commands, path = tmp_path / "commands", f"{tmp_path}:{os.environ['PATH']}"
    python, found = str(tmp_path / "python"), tmp_path / "commands.limits"
    suite(tmp_path / "out", 60, PYTHON=python, COMMANDS=str(commands), PATH=path, PATIENCE="8")
    assert found.read_text().split()[:2] == ["480", "2080"]
    summary = statuses((tmp_path / "out" / "summary.txt").read_text())
    benches = ("stages", "layer", "model", "layer_graphs", "model_graphs", "memory", "inference")
    assert summary["tests"] == "failed: 1" and summary["repeats"] == summary["training"] == "ok"
    assert [summary[name] for name in benches] == ["failed: red tests"] * 7
    assert "-m benchmarks.run " not in commands.read_text()


def test_the_wheels_are_pinned_and_listed() -> None:
    run = subprocess.run(["bash", "benchmarks/gpu_suite.sh", "--wheels"], cwd=ROOT, capture_output=True, text=True)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    listed = run.stdout.splitlines()
    assert run.returncode == 0 and set(listed) <= set(pins)
    assert {line.split("==")[0] for line in listed} >= {"megatron-core", "pytest", "hypothesis", "sentencepiece"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_missing_is_named(tmp_path: Path, device: str) -> None:
    """A Python that finds neither hypothesis nor sentencepiece."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name: None if name in ('hypothesis', 'sentencepiece') else find(name)\n"
    )
    run = suite(tmp_path / "out", 100, DEVICE=device, PYTHONPATH=str(tmp_path))
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert "lacks: hypothesis sentencepiece; set PYTHON to one that has them, or bring in WHEELS=FOLDER" in run.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_is_rehearsed(tmp_path: Path, device: str) -> None:
    """On the CPU as it is, and as a CUDA device that is pretended."""
    pretended = {"PYTHONPATH": str(ROOT / "tests" / "pretended_cuda"), "REHEARSAL": "1"}
    host = "tests/ops/test_goldens.py::test_committed_vectors_are_found"
    tests = {"TESTS": f"{host} tests/gpu/test_ops_on_gpu.py::test_auto_is_triton"}
    hidden = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "TEST_DEVICE")}
    extra = {"DEVICE": "cpu", "TESTS": host} if device == "cpu" else {**pretended, **tests}
    run = suite(tmp_path, 1750, environment=hidden, PATIENCE="3", **extra)
    summary = (tmp_path / "summary.txt").read_text()
    assert run.returncode == 0, run.stdout + run.stderr
    skipped = ["te_numerics", "memcheck", "racecheck"] + ["layer_graphs", "model_graphs"] * (device == "cpu")
    assert statuses(summary) == {step: "skipped" if step in skipped else "ok" for step in STEPS}
    files = packed(tmp_path)
    assert files["gpu_suite/te_numerics.log"] == "skipped: Transformer Engine is not installed\n"
    assert not [name for name in files if "layer_numerics" in name], "no result is claimed for what did not run"
    assert "one layer, forward and backward, 2 sequences of 32 tokens" in summary and "not judged here" in summary
    assert "model with 2 memories over without" in summary
    model = json.loads(files["gpu_suite/model_tiny.json"])["data"]["results"]
    assert [one["what"] for one in model] == ["without memory", "with memory"]
    assert model[1]["parameters"] > model[0]["parameters"]


@pytest.mark.slow
def test_a_step_that_fails_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    run = suite(tmp_path, 100, DEVICE="cpu", SECONDS_IN_ALL="20")
    summary = (tmp_path / "summary.txt").read_text()
    assert run.returncode == 1 and "failed: no time left" in summary and summary.startswith("machine      ok")
