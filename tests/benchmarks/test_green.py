"""Nothing is measured whose tests are red, slow, absent or not the memory's."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks import green


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an op and one green test of it, which counts its runs."""
    for folder in ("megatron_fwpkm/ops", "tests/ops", "tests/gpu"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "megatron_fwpkm/ops/op.py").write_text("ANSWER = 42\n")
    (tmp_path / "tests/conftest.py").write_text("")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\nmarkers = ["slow"]\n')
    (tmp_path / "tests/ops/test_op.py").write_text(
        "from megatron_fwpkm.ops.op import ANSWER\n"
        "def test_answer():\n    open('runs.txt', 'a').write('x')\n    assert ANSWER == 42\n"
    )
    monkeypatch.setattr(green, "ROOT", tmp_path)
    return tmp_path


def require(*paths: str, limit: float = 60) -> str:
    return green.require_green(argparse.Namespace(tests=list(paths), tests_limit=limit), "cpu")


def test_green_tests_run_once(project):
    assert require("tests/ops/test_op.py") == "1 passed: tests/ops/test_op.py"
    assert require("tests/ops/test_op.py") == "1 passed: tests/ops/test_op.py"
    assert (project / "runs.txt").read_text() == "x"
    # Whatever the verdict rests on makes them run again.
    (project / "megatron_fwpkm/ops/op.py").write_text("ANSWER = 40 + 2\n")
    require("tests/ops/test_op.py")
    assert (project / "runs.txt").read_text() == "xx"


def test_verdicts_can_be_kept_elsewhere(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody may write into the checkout."""
    folder = tmp_path_factory.mktemp("verdicts") / "green"
    monkeypatch.setenv("GREEN_FOLDER", str(folder))
    assert require("tests/ops/test_op.py") == next(folder.iterdir()).read_text()
    assert not (project / ".pytest_cache").exists()


def test_red_tests_stop_it_every_time(project):
    (project / "megatron_fwpkm/ops/op.py").write_text("ANSWER = 41\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"nothing is measured: the tests are not green[\s\S]*test_answer"):
            require("tests/ops/test_op.py")


def test_nothing_but_tests_of_the_memory_counts(project):
    (project / "tests/docs").mkdir()
    for path in ("tests/docs", "tests/ops/../docs", "tests/ops/test_other.py"):
        with pytest.raises(RuntimeError, match=f"--tests {path} is no test of the memory"):
            require(path)
    (project / "tests/ops/test_empty.py").write_text("")
    with pytest.raises(RuntimeError, match="nothing is measured: the tests are not green"):
        require("tests/ops/test_empty.py")


def test_tests_have_a_limit(project):
    (project / "tests/ops/test_op.py").write_text("import time\ndef test_slow():\n    time.sleep(60)\n")
    with pytest.raises(RuntimeError, match="the tests did not end within 0.5 s; --tests-limit gives more"):
        require("tests/ops/test_op.py", limit=0.5)


@pytest.mark.slow
def test_on_a_gpu_other_tests_run_without_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on the GPU all run, compiled; a failure of one hides no other."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(green.importlib.util, "find_spec", lambda name: None)  # workers take time to start
    (project / "tests/ops/test_op.py").write_text(
        "import os\ndef test_cpu():\n    assert os.environ['TEST_DEVICE'] == 'cpu'\n"
    )
    (project / "tests/gpu/test_gpu.py").write_text(
        "import os\ndef test_gpu():\n    assert os.environ['TEST_DEVICE'] == 'cuda'\n"
        "    assert 'TRITON_INTERPRET' not in os.environ\n"
    )
    arguments = argparse.Namespace(tests=["tests/ops/test_op.py", "tests/gpu/test_gpu.py"], tests_limit=100)
    assert green.require_green(arguments, "cuda") == "2 passed: tests/ops/test_op.py tests/gpu/test_gpu.py"
    (project / "tests/gpu/test_gpu.py").write_text("def test_one():\n    assert 0\ndef test_two():\n    assert 0\n")
    with pytest.raises(RuntimeError, match=r"the tests are not green[\s\S]*test_one[\s\S]*test_two"):
        green.require_green(arguments, "cuda")


def test_the_default_tests_are_there():
    assert all((green.ROOT / path).exists() for path in (*green.QUICK_TESTS, *green.GPU_TESTS))


@pytest.mark.slow
def test_they_run_alone_too(project, capsys):
    flags = ["--device", "cpu", "--tests", "tests/ops/test_op.py"]
    assert green.main(flags) == 0 and capsys.readouterr().out == "1 passed: tests/ops/test_op.py\n"
    (project / "megatron_fwpkm/ops/op.py").write_text("ANSWER = 41\n")
    assert green.main(flags) == 1 and "error: nothing is measured" in capsys.readouterr().err
