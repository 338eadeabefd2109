"""The instruction sets under which `make test-all` repeats the layout tests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cpu_capabilities import capabilities


@pytest.mark.parametrize(
    ("machine", "best", "there", "lacking"),
    [
        ("x86_64", "AVX512", ("default", "avx2", "avx512"), ()),
        ("AMD64", "AVX2", ("default", "avx2"), ("avx512",)),
        ("x86_64", "DEFAULT", ("default",), ("avx2", "avx512")),
        ("x86_64", "NO AVX", ("default",), ("avx2", "avx512")),
        ("aarch64", "SVE256", ("default", "sve256"), ()),
        ("arm64", "DEFAULT", ("default",), ()),
        ("s390x", "Z VECTOR", ("default", "zvector"), ()),
    ],
)
def test_values_of_a_cpu(machine: str, best: str, there: tuple[str, ...], lacking: tuple[str, ...]) -> None:
    assert capabilities(machine, best) == (there, lacking)


@pytest.mark.slow
def test_every_value_printed_is_taken_by_torch() -> None:
    """Whatever the variable is when it runs."""
    command = [sys.executable, "-m", "tests.cpu_capabilities"]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    values = printed.stdout.split()
    assert values[0] == "default"
    ask = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    for value in values:
        environment["ATEN_CPU_CAPABILITY"] = value
        asked = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, env=environment, timeout=60, check=True
        )
        assert asked.stdout.strip().lower().replace(" ", "") == value and "ignoring invalid" not in asked.stderr
