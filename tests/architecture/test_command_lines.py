"""Every entry point: help without torch, status 2 for wrong usage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, entry_points

ENTRY_POINTS = [source.path for source in entry_points()]
HEAVY = ("torch", "transformers", "megatron.core", "matplotlib")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python from the repository's root with the import log on."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "120"},
    )


def imported(log: str) -> set[str]:
    """Modules in the log of -X importtime."""
    return {match[1] for match in re.finditer(r"^import time:.*\|\s*(\S+)$", log, re.MULTILINE)}


def sub_commands(help_text: str) -> list[str]:
    """Names in the `{a,b}` of a usage line, where the tool has sub-commands."""
    usage = help_text.split("\n\n")[0]
    match = re.search(r"\s\{([a-z][a-z,-]*)\} \.\.\.", usage)
    return match[1].split(",") if match else []


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_help_does_not_wait_for_torch(path):
    first = run(path, "--help")
    assert first.returncode == 0, first.stderr[-500:]
    assert len(first.stdout) > 100
    assert not imported(first.stderr) & set(HEAVY)
    for name in sub_commands(first.stdout):
        inner = run(path, name, "--help")
        assert inner.returncode == 0, inner.stderr[-500:]
        assert not imported(inner.stderr) & set(HEAVY)


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_an_unknown_flag_is_a_usage_error(path):
    wrong = run(path, "--no-such-flag", "1")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_flags_are_not_abbreviated(path):
    names = sub_commands(run(path, "--help").stdout)
    for command in ([], *([name] for name in names)):
        assert run(path, *command, "--hel").returncode == 2


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_ctrl_c_during_the_first_import_is_one_line(path, tmp_path):
    done = interrupted_in("argparse", path, tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("path", "words"),
    [("tools/doctor.py", ""), ("tools/generate_text.py", "--model . --prompt x"), ("pretrain.py", "--num-layers 1")],
)
def test_ctrl_c_while_torch_is_imported_is_one_line(path, words, tmp_path):
    done = interrupted_in("torch", path, tmp_path, *words.split())
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def interrupted_in(module: str, path: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an entry point with a module that is interrupted while it is imported, and swallows KeyboardInterrupt."""
    (folder / f"{module}.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(1)\n"
        "except KeyboardInterrupt:\n"
        "    raise ImportError('not for you') from None\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, path, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment
    )


def test_the_import_log_is_read():
    assert "json" in imported(run("-c", "import json").stderr)
    assert "torch" in imported("import time:       123 |        456 |   torch\n")


def test_all_tools_of_the_design_are_there():
    named = {"train_tokenizer", "preprocess_data", "convert_checkpoint", "evaluate_needle", "generate_text", "doctor"}
    assert {"pretrain.py", "tools/chat.py", *(f"tools/{name}.py" for name in named)} <= set(ENTRY_POINTS)
