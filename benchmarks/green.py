"""No number of an operation whose tests are red: they run before, unless they passed unchanged already."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from benchmarks import hardware
from benchmarks.report import ROOT

QUICK_TESTS = tuple(
    f"tests/ops/test_{name}.py" for name in ("goldens", "implementations", "in_place", "selection", "streaming")
)
"""The memory against the dense oracle, the reference vectors and itself cut into calls, on the CPU."""

GPU_TESTS = ("tests/gpu", "tests/ops/triton")
"""The kernels, compiled, on the device."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tests, and how long they may take. There is no flag to measure without."""
    parser.add_argument(
        "--tests",
        nargs="+",
        metavar="PATH",
        help=f"tests of the memory that must be green, below tests/ops or tests/gpu (default: {len(QUICK_TESTS)} quick "
        f"files, on a GPU also {' and '.join(GPU_TESTS)})",
    )
    parser.add_argument("--tests-limit", type=float, default=300, help="seconds they may take (default: 300)")


def require_green(arguments: argparse.Namespace, device: str) -> str:
    """Run the tests that the flags name; returns what passed, in one line for the report.

    What passed once with the same ops, tests, versions and kind of device is not run again: GREEN_FOLDER of the
    environment holds the verdicts, by default in .pytest_cache.

    Raises:
        RuntimeError: a test fails, none ran, they are not the memory's, or they take too long.
    """
    paths = arguments.tests or [*QUICK_TESTS, *(GPU_TESTS if device.startswith("cuda") else ())]
    for path in paths:
        known = path.startswith(("tests/ops", "tests/gpu")) and ".." not in path
        if not known or not (ROOT / path.partition("::")[0]).exists():
            raise RuntimeError(f"--tests {path} is no test of the memory: name files below tests/ops or tests/gpu")
    stamp = Path(os.environ.get("GREEN_FOLDER", ROOT / ".pytest_cache" / "green")) / _digest(paths, device)
    if stamp.is_file():
        return stamp.read_text()
    print(f"tests first: {' '.join(paths)} ...", file=sys.stderr, flush=True)
    on_gpu = [path for path in paths if device.startswith("cuda") and path.startswith(GPU_TESTS)]
    groups = [group for group in ([path for path in paths if path not in on_gpu], on_gpu) if group]
    # At the same time: the ones keep a core busy, the others the device and the compiler.
    with ThreadPoolExecutor(len(groups)) as pool:
        devices = ["cuda" if group is on_gpu else "cpu" for group in groups]
        runs = list(pool.map(_run_tests, groups, devices, repeat(arguments.tests_limit)))
    red = "".join(text for passed, text in runs if not passed)
    if red:
        raise RuntimeError(f"nothing is measured: the tests are not green.\n{red}")
    text = f"{sum(passed for passed, _ in runs)} passed: {' '.join(paths)}"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(text)
    return text


def _run_tests(paths: Sequence[str], device: str, limit: float) -> tuple[int, str]:
    """How many tests passed, or 0 where one failed, and the end of what pytest said.

    Args:
        paths: of the tests.
        device: cpu: in processes that see no GPU, up to the first that fails. cuda: all of them, by more
            processes, for compiling takes longest. Without pytest-xdist there is one.
        limit: seconds.

    Raises:
        RuntimeError: they take longer.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *paths]
    # What is inherited would choose for both kinds of tests; tests/conftest.py chooses by TEST_DEVICE.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "TEST_DEVICE": device}
    cores = os.cpu_count() or 2
    if device == "cpu":
        command.append("-x")
    processes = cores // 4 if device == "cpu" else max(2, cores // 2)
    if processes > 1 and importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, processes))]
    try:
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        raise RuntimeError(
            f"nothing is measured: the tests did not end within {limit:g} s; --tests-limit gives more\n{said[-3000:]}"
        ) from None
    passed = re.search(r"(\d+) passed", run.stdout)
    said = f"{run.stdout[-6000:]}{run.stderr[-1000:]}"
    return (int(passed[1]) if passed and not run.returncode else 0), said


def main(argv: Sequence[str] | None = None) -> int:
    """Run them alone: whatever is measured next finds them green. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.green", description=__doc__)
    parser.add_argument("--device", default="auto", help="torch device (default: auto, cuda where there is one)")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        print(require_green(arguments, hardware.resolve(arguments.device)))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _digest(paths: Sequence[str], device: str) -> str:
    """Of everything on which the tests' verdict rests."""
    import torch

    found = hashlib.sha256(repr((platform.python_version(), str(torch.__version__), device, paths)).encode())
    rooms = ("megatron_fwpkm/ops", "megatron_fwpkm/layers", "tests/ops", "tests/layers", "tests/gpu")
    folders = [ROOT / name for name in rooms]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    for file in [ROOT / "tests" / "conftest.py", *files]:
        found.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:32]


if __name__ == "__main__":
    sys.exit(main())
