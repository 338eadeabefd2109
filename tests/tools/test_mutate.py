"""tools/mutate.py on a project of one file: what is planted, what survives, and that nothing is left behind."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.mutation.mutants import Mutant, draw, mutants_of
from tests.mutation.trial import KILLED, SURVIVED, TIMEOUT, Plan, measure, room_tests
from tests.tools.in_process import run_tool

# One line that a test pins down, one that none looks at.
SOURCE = """
def grade(points):
    return "pass" if points >= 10 else "fail"


def bonus(points):
    return points * 3
"""
TEST = """
from megatron_fwpkm.school.grades import bonus, grade

def test_grades():
    assert [grade(n) for n in (9, 10, 11)] == ["fail", "pass", "pass"]

def test_bonus():
    bonus(1)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for folder, name, text in (
        ("megatron_fwpkm", "__init__.py", ""),
        ("megatron_fwpkm/school", "__init__.py", ""),
        ("megatron_fwpkm/school", "grades.py", SOURCE),
        ("tests/school", "test_grades.py", TEST),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_text(text)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["slow"]\n')
    return root


def plan(root: Path, count: int = 99, **changes: object) -> Plan:
    return Plan(root, "school", count, 0, ("tests/school",), **changes)  # type: ignore[arg-type]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def planted(source: str) -> set[tuple[str, str, str]]:
    return {(mutant.kind, mutant.before, mutant.after) for mutant in mutants_of(textwrap.dedent(source), "file.py")}


@pytest.mark.slow
def test_what_tests_pin_down_is_killed_and_what_they_do_not_survives(project: Path, tmp_path: Path) -> None:
    before, said = contents(project), list[str]()
    outcome = measure(plan(project), tmp_path / "out.jsonl", say=said.append)
    verdicts = {line["line"]: line["verdict"] for line in outcome.lines}
    assert verdicts == {3: KILLED, 7: SURVIVED}
    assert outcome.of(KILLED)[0]["test"] == "tests/school/test_grades.py::test_grades"
    assert "2 mutants: 1 killed, 0 over the time limit, 1 survived (50 %)" in outcome.summary()
    assert "megatron_fwpkm/school/grades.py:7" in outcome.summary() and "grades.py:3" not in outcome.summary()
    assert contents(project) == before, "the working tree is only read"
    assert sum("grades.py" in line for line in said) == 2
    header, *lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (header["room"], header["seed"]) == ("school", 0)
    assert sorted(lines, key=str) == sorted(outcome.lines, key=str)


@pytest.mark.slow
def test_a_stopped_measurement_goes_on(project: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = measure(plan(project, 1), output, say=lambda _: None)
    with open(output, "a") as file:
        file.write('{"mutant": "cut o')
    said: list[str] = []
    whole = measure(plan(project, 2), output, say=said.append)
    assert said[0] == "going on: 1 verdicts are there" and whole.lines[0] == first.lines[0]
    assert len(output.read_text().splitlines()) == 3
    said.clear()
    assert measure(plan(project, 2), output, say=said.append).lines == whole.lines
    assert said == ["going on: 2 verdicts are there"], "and runs nothing again"
    (project / "tests/school/test_grades.py").write_text(TEST + "\n")
    with pytest.raises(ValueError, match=r"holds another measurement \(sources differ\).*--overwrite"):
        measure(plan(project, 2), output, say=said.append)
    assert len(measure(plan(project, 1), output, overwrite=True, say=said.append).lines) == 1


@pytest.mark.slow
def test_a_fault_that_never_ends_is_over_the_limit_and_leaves_no_process(project: Path, tmp_path: Path) -> None:
    source = "def clear(items):\n    while items:\n        items.pop()\n"
    (project / "megatron_fwpkm/school/grades.py").write_text(source)
    pid = tmp_path / "pid"
    (project / "tests/school/test_grades.py").write_text(
        f"""
import subprocess, sys
from megatron_fwpkm.school.grades import clear

def test_clear():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({str(pid)!r}, "w").write(str(child.pid))
    try:
        clear([1])
    finally:
        child.kill()
"""
    )
    outcome = measure(plan(project, time_limit=5), tmp_path / "out.jsonl", say=lambda _: None)
    late = outcome.of(TIMEOUT)
    assert [(line["line"], line["kind"]) for line in late] == [(3, "statement dropped")]
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid.read_text()], capture_output=True, text=True).stdout
    assert state.strip() in ("", "Z"), "ended, if perhaps not yet buried"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("tests/school/test_grades.py", "def test():\n    assert 0\n", r"do not pass as they are \(status 1\)"),
        ("tests/school/test_grades.py", "", r"do not pass as they are \(status 5\)"),
        ("megatron_fwpkm/school/grades.py", "X = 'text'\n", "nothing that could be changed"),
    ],
    ids=["red tests", "no tests", "no code"],
)
def test_what_cannot_be_measured_is_refused(project: Path, tmp_path: Path, path: str, text: str, said: str) -> None:
    (project / path).write_text(text)
    with pytest.raises(ValueError, match=said):
        measure(plan(project), tmp_path / "out.jsonl", say=lambda _: None)


def test_kinds_of_faults() -> None:
    found = planted(
        """
        def f(x, limit=3, *, deep=True):
            if x and not limit:
                x += 1
            for y in [z for z in x if z]:
                continue
            g(x, key=-limit)
            return max(x, y) - 2 if x is None else x < 0.5
        """
    )
    assert {
        ("constant", "3", "4"), ("constant", "3", "0"), ("constant", "True", "False"), ("constant", "0.5", "1.5"),
        ("and/or", "x and (not limit)", "x or not limit"), ("condition negated", "x and (not limit)",
        "not (x and (not limit))"), ("sign or not dropped", "not limit", "limit"), ("condition negated", "z", "not z"),
        ("statement dropped", "x += 1", "pass"), ("statement dropped", "continue", "pass"),
        ("statement dropped", "g(x, key=-limit)", "pass"), ("argument key dropped", "g(x, key=-limit)", "g(x)"),
        ("sign or not dropped", "-limit", "limit"), ("call", "max(x, y)", "min(x, y)"),
        ("arithmetic", "max(x, y) - 2", "max(x, y) + 2"), ("comparison", "x is None", "x is not None"),
        ("comparison", "x < 0.5", "x <= 0.5"), ("comparison", "x < 0.5", "x >= 0.5"),
        ("returns None", "return max(x, y) - 2 if x is None else x < 0.5", "return None"),
    } <= found  # fmt: skip


def test_words_are_left_alone() -> None:
    assert (
        planted(
            '''
            """A docstring of 3 words."""
            import sys
            from typing import TYPE_CHECKING

            if TYPE_CHECKING:
                x = 1

            @decorated(4)
            def f(x: tuple[3], y: str = "text") -> Literal[1]:
                """One of 2."""
                print(1, file=sys.stderr)
                log.warning("%d", 3 + 4)
                text = f"{1 + 1:3d}"

            if __name__ == "__main__":
                f(1)
            '''
        )
        == set()
    )
    assert planted("raise ValueError(1 + 2)") == {("statement dropped", "raise ValueError(1 + 2)", "pass")}


def test_a_mutant_changes_one_place_and_stays_python() -> None:
    source = 'def f(a):\n    """Größe — ”."""\n    s = "äöü"; return (a +\n            1) * 2  # ü\n'
    mutants = mutants_of(source, "f.py")
    assert len(mutants) >= 5
    for mutant in mutants:
        changed = mutant.apply(source)
        assert changed != source and ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
        assert changed.startswith(source[:30]) and changed.endswith("  # ü\n")


@pytest.mark.slow
def test_the_draw_is_that_of_its_seed(project: Path) -> None:
    root = Path(__file__).resolve().parents[2]

    def drawn(count: int, seed: int) -> list[Mutant]:
        return draw(root, "evaluation", count, seed)

    assert drawn(30, 1)[:10] == drawn(10, 1) != drawn(10, 2)
    assert len({(mutant.path, mutant.line) for mutant in drawn(30, 1)}) == 30
    with pytest.raises(ValueError, match="--room 'nowhere' is not a folder of megatron_fwpkm; choose one of school"):
        draw(project, "nowhere", 1, 0)


def test_every_room_has_its_tests() -> None:
    root = Path(__file__).resolve().parents[2]
    for room in (path.name for path in (root / "megatron_fwpkm").iterdir() if (path / "__init__.py").is_file()):
        assert room_tests(room, None) and all((root / path).exists() for path in room_tests(room, None)), room
    assert room_tests("data", ["tests/x.py"]) == ("tests/x.py",)


@pytest.mark.slow
def test_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
    listed = run_tool(capsys, "mutate", "--room", "evaluation", "--count", 3, "--list")
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) == 3
    assert all(line.startswith("megatron_fwpkm/evaluation/") for line in listed.stdout.splitlines())
    wrong = run_tool(capsys, "mutate", "--room", "attic", "--list")
    assert wrong.returncode == 1 and "error: --room 'attic' is not a folder" in wrong.stderr
    wrong = run_tool(capsys, "mutate", "--room", "data", "--tests", "tests/nowhere")
    assert wrong.returncode == 1 and wrong.stderr == "error: --tests tests/nowhere does not exist\n"


@pytest.mark.slow
def test_a_terminated_measurement_leaves_neither_copy_nor_tests(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "tools/mutate.py", "--room", "config", "--tests",
               "tests/config/test_command_line_errors.py", "--output", str(tmp_path / "out.jsonl")]  # fmt: skip
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "without a fault first" in process.stderr.readline()
        assert len(list(temporary.glob("mutants_*/project"))) == 1
        process.terminate()
        assert process.wait(60) == 143
    assert list(temporary.iterdir()) == []
