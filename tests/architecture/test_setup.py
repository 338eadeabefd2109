"""tools/setup.sh refuses an interpreter that cannot work, before it creates anything; `make` lists the targets."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT


def setup(venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script with a changed environment."""
    command = ["bash", "tools/setup.sh", str(venv), "test"]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def fake_python(folder: Path, status: int) -> Path:
    """A program that ends with a status, whatever it is asked."""
    path = folder / "python-fake"
    path.write_text(f"#!/usr/bin/env bash\nexit {status}\n")
    path.chmod(0o700)
    return path


def test_an_unsuitable_interpreter_is_refused(tmp_path):
    run = setup(tmp_path / "venv", PYTHON=str(fake_python(tmp_path, 1)))
    assert run.returncode == 1
    assert re.search(r"error: PYTHON=.*python-fake does not run or is not Python 3\.11 or 3\.12", run.stderr)
    assert not (tmp_path / "venv").exists()


def test_an_interpreter_that_cannot_make_an_environment_is_told(tmp_path):
    python = fake_python(tmp_path, 0)
    python.write_text('#!/usr/bin/env bash\n[ "$1" != -m ]\n')
    run = setup(tmp_path / "venv", PYTHON=str(python))
    assert run.returncode == 1
    assert "install python3-venv" in run.stderr


def test_a_broken_environment_is_told(tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    fake_python(tmp_path, 1).rename(tmp_path / "venv" / "bin" / "python")
    run = setup(tmp_path / "venv")
    assert run.returncode == 1
    assert re.search(r"error: .*venv/bin/python does not run .* remove .* and run make setup again", run.stderr)


MAKES_OWN_VARIABLES = ("MCORE", "VENV", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL")
"""What `make test MCORE=...` hands to the tests, and through them to the make of a test."""


def test_another_megatron_is_installed_in_an_environment_of_its_own(tmp_path):
    """MCORE: whatever Python the release declares, and nothing else with it."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = fake_python(tmp_path, 0).rename(tmp_path / "venv" / "bin" / "python")
    python.write_text(f'#!/usr/bin/env bash\n[ "$1" = -m ] && echo "$*" >>{tmp_path}/calls\nexit 0\n')
    assert setup(tmp_path / "venv", MCORE="0.19.2").returncode == 0
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last.startswith("-m pip install ")
    assert last.endswith(" --no-deps --ignore-requires-python megatron-core==0.19.2")

    def plan(*words: str) -> str:
        command = ["make", "--dry-run", "--always-make", "test", *words]
        clean = {name: value for name, value in os.environ.items() if name not in MAKES_OWN_VARIABLES}
        return subprocess.run(
            command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=30, check=True
        ).stdout

    own = plan("MCORE=0.19.2")
    assert "MCORE='0.19.2' bash tools/setup.sh '.venv-mcore/0.19.2'" in own
    assert ".venv-mcore/0.19.2/bin/python -m pytest" in own and ".venv/" not in own
    assert "MCORE='' bash tools/setup.sh '.venv'" in plan()


def test_the_sanitizers_triton_is_installed_last(tmp_path):
    """After everything that would replace it, and in an environment of its own."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = fake_python(tmp_path, 0).rename(tmp_path / "venv" / "bin" / "python")
    python.write_text(f'#!/usr/bin/env bash\n[ "$1" = -m ] && echo "$*" >>{tmp_path}/calls\nexit 0\n')
    command = ["bash", "tools/setup.sh", str(tmp_path / "venv"), ""]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "TRITON_VIZ": "3.0"}, timeout=60, check=True)
    *_, project, last = (tmp_path / "calls").read_text().splitlines()
    assert project.endswith(" -e .")
    assert last.startswith("-m pip install ") and last.endswith(" triton-viz==3.0 triton==3.6.0 numpy<2.4")


TARGETS = [
    *("setup", "quickstart", "test", "test-all", "test-transformers", "test-lm-eval", "sanitize-kernels", "lint"),
    *("bench", "docs", "clean"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_make_alone_lists_every_target(target):
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert listed.returncode == 0
    assert re.search(rf"^  make {target} +\w", listed.stdout, re.MULTILINE)


def test_the_environment_of_the_tests_has_deepspeed_without_compiling_it(tmp_path):
    asked = subprocess.run(
        ["make", "-n", "-B", "setup", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert re.search(r"tools/setup\.sh \S+ train,\S*\bdeepspeed\b", asked.stdout), asked.stdout + asked.stderr
    assert re.search(r"^export DS_BUILD_OPS=0\b", (ROOT / "tools/setup.sh").read_text(), re.MULTILINE)
