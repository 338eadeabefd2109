"""Plants mutants one after the other into a copy of the project and runs the tests of their room on each.

The working tree is only read. A measurement that was stopped goes on: its file says what was asked and what came out.

mutmut and cosmic-ray were considered. They make every mutant of a project, of which there are more than 10,000 here,
and run one set of tests on each; what is needed is a seeded draw by room and the tests of that room.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.mutation.mutants import PACKAGE, Mutant, draw

ROOM_TESTS: dict[str, tuple[str, ...]] = {
    "conversion": ("tests/conversion", "tests/tools/test_convert_checkpoint.py"),
    "data": ("tests/data", "tests/tools/test_preprocess_data.py", "tests/tools/test_dataset_tools.py"),
    "evaluation": ("tests/evaluation", "tests/tools/test_evaluate_needle.py", "tests/tools/test_chat.py"),
    "hf": ("tests/hf", "tests/conversion", "tests/tools/test_generate_text.py"),
    "processes": ("tests/checkpoint/test_lock.py", "tests/distributed", "tests/test_worker_signals.py"),
    "training": ("tests/training", "tests/test_pretrain.py"),
}
"""Tests of a room, where they are more than the folder of its name."""

SURVIVED, KILLED, TIMEOUT = "survived", "killed", "timeout"
_LEFT_OUT = {".git", ".venv", "runs", "build", "dist", "__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache"}
_END = 5.0
"""Seconds that processes get to end before they are killed."""


@dataclass(frozen=True)
class Plan:
    """What to measure. All of it but `count` decides what a mutant's verdict means."""

    root: Path
    room: str
    count: int
    seed: int
    tests: tuple[str, ...]
    """Files and folders below the root."""
    marker: str = "not slow"
    """pytest's -m."""
    time_limit: float | None = None
    """Seconds for the tests of one mutant; None: three times what they take unchanged, and 60 more."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for verdicts to belong together: sources and tests as they are, too."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(project_files(self.root)):
            if name.startswith((f"{PACKAGE}/", "tests/")):
                digest.update(name.encode() + b"\0" + (self.root / name).read_bytes())
        asked = {"room": self.room, "seed": self.seed, "tests": list(self.tests), "marker": self.marker}
        return {**asked, "sources": digest.hexdigest()}


@dataclass
class Outcome:
    """Verdicts by mutant, as JSON Lines hold them."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def of(self, verdict: str) -> list[dict[str, Any]]:
        """Those with this verdict."""
        return [line for line in self.lines if line["verdict"] == verdict]

    def summary(self) -> str:
        """Counts, then the survivors with place and fault."""
        total, alive = len(self.lines), self.of(SURVIVED)
        late = len(self.of(TIMEOUT))
        text = f"{total} mutants: {len(self.of(KILLED))} killed, {late} over the time limit, {len(alive)} survived"
        if alive:
            text += f" ({100 * len(alive) / total:.0f} %). Each is a missing test, or a fault that changes nothing:"
        return "\n".join([text, *(f"  {line['mutant']}" for line in alive)])


def project_files(root: Path) -> list[str]:
    """Files of the project that are tracked or new; without git all but environments, caches and outputs."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    return [name for name in listed if name and not _LEFT_OUT & set(Path(name).parts) and (root / name).is_file()]


def measure(plan: Plan, output: Path, *, overwrite: bool = False, say: Callable[[str], None] = print) -> Outcome:
    """Verdicts of all drawn mutants, those that `output` holds already taken from there.

    Args:
        plan: what to measure.
        output: JSON Lines; the first says what was asked.
        overwrite: begin anew even if verdicts are there.
        say: takes a line per mutant.

    Raises:
        ValueError: no such room or tests, tests that fail without a fault, or an output of another measurement.
    """
    for path in plan.tests:
        if not (plan.root / path).exists():
            raise ValueError(f"--tests {path} does not exist")
    mutants = draw(plan.root, plan.room, plan.count, plan.seed)
    done = _begin(output, plan.identity(), overwrite)
    if done:
        say(f"going on: {len(done)} verdicts are there")
    missing = [mutant for mutant in mutants if str(mutant) not in done]
    if missing:
        with _copied(plan.root) as copy:
            limit = _check_unchanged(plan, copy, say)
            for mutant in missing:
                line = _try(plan, copy, mutant, limit)
                done[str(mutant)] = line
                with open(output, "a") as file:
                    file.write(json.dumps(line) + "\n")
                say(f"[{sum(str(m) in done for m in mutants)}/{len(mutants)}] {line['verdict']:8} "
                    f"{line['seconds']:5.0f} s  {mutant}{_by(line)}")  # fmt: skip
    return Outcome([done[str(mutant)] for mutant in mutants])


def _by(line: Mapping[str, Any]) -> str:
    return f"  <- {line['test']}" if line["test"] else ""


def _begin(output: Path, identity: Mapping[str, Any], overwrite: bool) -> dict[str, dict[str, Any]]:
    """Verdicts of the same measurement by mutant; a new file where there is none. A last line cut off is dropped."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if not overwrite and output.exists():
        text = output.read_text()
        whole = text[: text.rfind("\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines:
            if lines[0] != identity:
                different = sorted(name for name in identity if lines[0].get(name) != identity[name])
                raise ValueError(
                    f"{output} holds another measurement ({', '.join(different)} differ); choose another --output, or "
                    "--overwrite to start over"
                )
            output.write_text(whole)
            return {line["mutant"]: line for line in lines[1:]}
    output.write_text(json.dumps(identity) + "\n")
    return {}


@contextmanager
def _copied(root: Path) -> Iterator[Path]:
    """A copy of the project's files, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        copy = Path(folder).resolve() / "project"
        for name in project_files(root):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
        yield copy


def _check_unchanged(plan: Plan, copy: Path, say: Callable[[str], None]) -> float:
    """Run the tests without a fault; returns the time limit. Raises ValueError unless they pass, in the copy."""
    program = f"import {PACKAGE}; print({PACKAGE}.__path__[0])"
    where = subprocess.run([sys.executable, "-c", program], cwd=copy, env=_environment(copy), capture_output=True,
                           text=True)  # fmt: skip
    assert Path(where.stdout.strip() or ".").resolve() == copy / PACKAGE, f"the copy is not what runs: {where}"
    say(f"the tests of {plan.room} without a fault first: {' '.join(plan.tests)}")
    status, seconds, said = _run_tests(plan, copy, None)
    if status != 0:
        raise ValueError(
            f"the tests of --room {plan.room} do not pass as they are (status {status}):\n{said[-2000:].strip()}"
        )
    limit = plan.time_limit or 3 * seconds + 60
    say(f"they pass in {seconds:.0f} s; a mutant has {limit:.0f} s")
    return limit


def _try(plan: Plan, copy: Path, mutant: Mutant, limit: float) -> dict[str, Any]:
    file = copy / mutant.path
    source = file.read_text()
    file.write_text(mutant.apply(source))
    try:
        status, seconds, said = _run_tests(plan, copy, limit)
    finally:
        file.write_text(source)
    verdict = TIMEOUT if status is None else SURVIVED if status == 0 else KILLED
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    test = failed[1] if failed and verdict == KILLED else ""
    return {"mutant": str(mutant), "verdict": verdict, "seconds": round(seconds, 1), "test": test,
            "path": mutant.path, "line": mutant.line, "kind": mutant.kind}  # fmt: skip


def _environment(copy: Path) -> dict[str, str]:
    """Imports come from the copy, and nothing of one mutant stays for the next."""
    return {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def _run_tests(plan: Plan, copy: Path, limit: float | None) -> tuple[int | None, float, str]:
    """Exit status (None: over the limit), seconds and output of pytest; no process outlives the call."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", "-m", plan.marker]
    with tempfile.TemporaryFile("w+") as output:
        begin = time.monotonic()
        process = subprocess.Popen(
            [*command, *plan.tests], cwd=copy, env=_environment(copy), stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end_group(process)
        seconds = time.monotonic() - begin
        output.seek(0)
        return status, seconds, output.read()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End pytest and whatever it has left running in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END)


def room_tests(room: str, chosen: Sequence[str] | None) -> tuple[str, ...]:
    """Where the tests of a room are, unless others were chosen."""
    return tuple(chosen or ROOM_TESTS.get(room, (f"tests/{room}",)))
