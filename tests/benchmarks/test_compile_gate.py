"""The compile gate: every kernel of the ops passes it, and it finds each thing it is there to find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: where kernels are interpreted, as tests may ask, nothing can be compiled."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=240
    )


def gate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The gate as a command."""
    return python("-m", "benchmarks.compile_gate", *arguments, **environment)


def test_every_kernel_passes():
    run = gate()
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_every_kernel_passes_and_the_record_is_complete():
    run = gate("--all")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.CompletedProcess[str]]]:
    """A record of the kernels of gate_kernels.py."""
    table = tmp_path_factory.mktemp("gate") / "kernels.json"
    yield table, own_gate(table, "--write")


def own_gate(table: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The gate over the kernels of gate_kernels.py."""
    return gate("--package", "tests.benchmarks.gate_kernels", "--table", str(table), *arguments)


def test_broken_rules_are_named(recorded):
    _, run = recorded
    assert run.returncode == 1
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert lines[0] == "error: nobody_compiles_this is compiled by no KernelVariant of its module"
    expected = [f"{rule} (sm_{sm})" for rule in ("narrow", "spilling", "wrong types") for sm in (80, 90, 100)]
    assert [line.split(": ")[1].split(")")[0] + ")" for line in lines[1:]] == expected, run.stderr
    assert lines[7].endswith("does not compile: cannot add pointers together")
    assert "loads no 16 bytes at a time" in lines[1] and "spills registers" in lines[4]
    assert "5 kernels for 3 architectures" in run.stdout


def test_the_record_holds_what_was_compiled(recorded):
    table, _ = recorded
    found = json.loads(table.read_text())["kernels"]
    assert list(found) == ["good", "narrow", "spilling", "wrong types", "spilling, as it may"]
    assert found["wrong types"] == {}
    good = found["good"]["sm_90"]
    assert good | {"registers": 0} == {
        "registers": 0, "shared_bytes": 0, "stack_bytes": 0, "wide_loads": 1, "loads": 1, "wide_stores": 1, "stores": 1,
    }  # fmt: skip
    assert 8 <= good["registers"] <= 32 and found["narrow"]["sm_90"]["wide_loads"] == 0
    assert found["spilling"]["sm_90"]["stack_bytes"] > 0
    markdown = table.with_suffix(".md").read_text()
    assert f"| good | sm_90 | {good['registers']} | 0 | 0 | 1 of 1 | 1 of 1 |" in markdown


def test_a_change_is_named(recorded, tmp_path):
    content = json.loads(recorded[0].read_text())
    content["kernels"]["good"]["sm_90"]["registers"] += 5
    before = content["kernels"]["good"]["sm_90"]["registers"]
    content["kernels"]["gone"] = content["kernels"].pop("narrow")
    changed = tmp_path / "kernels.json"
    changed.write_text(json.dumps(content))
    run = own_gate(changed, "--all")
    assert f"error: good (sm_90): registers {before} -> {before - 5}" in run.stderr
    assert "error: gone is recorded and no longer there" in run.stderr
    assert "error: narrow is not recorded" in run.stderr
    assert "python -m benchmarks.compile_gate --write" in run.stderr


@pytest.mark.slow
def test_without_the_slow_ones_nobody_knows_what_is_gone(recorded, tmp_path):
    content = json.loads(recorded[0].read_text())
    content["kernels"]["gone"] = content["kernels"].pop("narrow")
    changed = tmp_path / "kernels.json"
    changed.write_text(json.dumps(content))
    assert "no longer there" not in own_gate(changed).stderr


@pytest.mark.slow
def test_another_triton_is_held_to_the_rules_only(recorded, tmp_path):
    content = json.loads(recorded[0].read_text()) | {"triton": "0.1"}
    content["kernels"]["good"]["sm_90"]["registers"] = 0
    other = tmp_path / "kernels.json"
    other.write_text(json.dumps(content))
    run = own_gate(other)
    assert "recorded with Triton 0.1, not compared" in run.stdout
    assert "registers 0" not in run.stderr and "narrow (sm_80) loads no 16 bytes" in run.stderr


def test_interpreted_kernels_are_refused():
    run = gate(TRITON_INTERPRET="1")
    assert run.returncode == 2 and "TRITON_INTERPRET is set" in run.stderr


def test_a_forgotten_argument_is_named():
    program = (
        "from dataclasses import replace; from tests.benchmarks.gate_kernels import KERNEL_VARIANTS as all;"
        "from benchmarks.compile_gate import compile_variant; compile_variant(replace(all[0], constants={}), 90)"
    )
    run = python("-c", program)
    assert "ValueError: good: scale_rows takes ['TABLE', 'OUT', 'scale', 'D'], declared are" in run.stderr
