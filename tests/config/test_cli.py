"""Exit status and error lines of every command line."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_fwpkm.config.cli import run_cli

ROOT = Path(__file__).resolve().parents[2]


def raising(error: BaseException):
    def main(argv=None):
        raise error

    return main


def test_notes_follow_an_error(capsys):
    error = ValueError("--lr 0 must be greater than 0")
    error.add_note("--lr 0 stands in run.yaml:3")
    assert run_cli(raising(error)) == 1
    assert capsys.readouterr().err == "error: --lr 0 must be greater than 0 (--lr 0 stands in run.yaml:3)\n"


def test_status_and_arguments_pass_through():
    assert run_cli(lambda argv: len(argv or ()), ["a", "b"]) == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("--lr 0 must be greater than 0"), "error: --lr 0 must be greater than 0"),
        (
            FileNotFoundError(2, "No such file or directory", "corpus.idx"),
            "error: corpus.idx: No such file or directory",
        ),
        (OSError("disk on fire"), "error: disk on fire"),
        (
            ModuleNotFoundError("No module named 'rich'", name="rich"),
            "error: the package rich is not installed here; run",
        ),
        (ValueError(), "error: ValueError"),
    ],
)
def test_an_error_of_the_user_is_one_line(error, line, capsys, monkeypatch):
    monkeypatch.delenv("FWPKM_TRACEBACK", raising=False)
    assert run_cli(raising(error)) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(line) and printed.err.count("\n") == 1
    assert printed.out == ""


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(AssertionError, match="our bug"):
        run_cli(raising(AssertionError("our bug")))


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("FWPKM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"):
        run_cli(raising(ValueError("wrong")))


def test_interrupt_is_130(capsys):
    assert run_cli(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_usage_errors_keep_status_2():
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda argv: argparse.ArgumentParser(prog="tool").parse_args(argv) and 0, ["--x"])
    assert caught.value.code == 2


def test_a_closed_pipe_is_silent():
    script = (
        "import sys\nfrom megatron_fwpkm.config.cli import run_cli\n"
        "def main(argv):\n    for i in range(100000): print('line', i)\n    return 0\nsys.exit(run_cli(main))"
    )
    run = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -1', sys.executable, script],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert run.stdout == "line 0\n"
    assert run.stderr == ""
