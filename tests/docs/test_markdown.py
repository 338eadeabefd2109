"""Documents are code: every path they name exists and every command they show would be accepted."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout

import pytest

from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.config.value_sources import check_memory_options
from tests.docs.markdown import ROOT, Command, commands, markdown_files, named_paths

FILES = markdown_files()
COMMANDS = [command for path in FILES for command in commands(path)]
_FLAGS_OF = {"megatron_fwpkm.evaluation.harness": "lm_eval"}
"""Modules whose flags are those of a library of an extra, which can be checked where it is installed."""

_ACCEPTED = {
    "cd", "git", "pip", "docker", "sbatch", "less", "ls", "cat", "open", "printf", "export", "source", "pre-commit",
}  # fmt: skip


def main_of(words: tuple[str, ...]) -> tuple[Callable[[], object], list[str]] | None:
    """The function of a benchmark or an example, and its arguments: in a new process each would import torch again."""
    if words[0] == "-m" and words[1].startswith("benchmarks."):
        return importlib.import_module(words[1]).main, [*words[2:]]
    if words[0].startswith("examples/"):
        return runpy.run_path(str(ROOT / words[0]))["main"], [*words[1:]]
    return None


@functools.cache
def help_text(*words: str) -> str:
    """What `python <words> --help` prints; the command must succeed."""
    found = main_of(words)
    if found is not None:
        main, arguments = found
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as shown:
            patch.setattr(sys, "argv", [words[0], *arguments, "--help"])
            patch.setenv("COLUMNS", "200")
            with pytest.raises(SystemExit, match="^0$"):
                main()
        return shown.getvalue()
    run = subprocess.run(
        [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    assert run.returncode == 0, f"{' '.join(words)} --help failed: {run.stderr[-500:]}"
    return run.stdout


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_flags(command: Command, script: list[str], arguments: list[str]) -> None:
    """Every flag among the arguments stands in the script's help (or in its sub-command's)."""
    known = help_text(*script)
    if arguments and re.fullmatch(r"[a-z][a-z-]*", arguments[0]) and re.search(rf"\b{arguments[0]}\b", known):
        known = help_text(*script, arguments[0])
    for word in arguments:
        if word.startswith("--"):
            flag = word.split("=")[0]
            assert re.search(rf"{re.escape(flag)}(?![\w-])", known), f"{command}: {flag} is not in its --help"


def check_python(command: Command, words: list[str]) -> None:
    """A `python ...` command names an existing script or module and only flags that it knows."""
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None, f"{command}: no module {words[1]}"
        library = _FLAGS_OF.get(words[1])
        if library is not None and importlib.util.find_spec(library) is None:
            return
        if words[1].split(".")[0] in {"megatron_fwpkm", "benchmarks"}:
            check_flags(command, words[:2], words[2:])
    elif words[0] != "-c":
        assert (ROOT / words[0]).is_file(), f"{command}: {words[0]} does not exist"
        check_flags(command, words[:1], words[1:])
        if words[0] == "pretrain.py":
            resolved = parse_pretrain(made_by_other_commands(words[1:]))
            check_memory_options(resolved)
            assert not problems(resolved.config), f"{command}: {problems(resolved.config)}"


def made_by_other_commands(words: list[str]) -> list[str]:
    """The arguments without `--config runs/...`, a file that a command before this one writes."""
    written = [i for i, word in enumerate(words) if word == "--config" and words[i + 1].startswith("runs/")]
    return [word for i, word in enumerate(words) if i not in written and i - 1 not in written]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_exists(path):
    missing = [text for text, target in named_paths(path) if not target.exists()]
    assert not missing, f"{path.relative_to(ROOT)} names what is not there: {missing}"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_accepted(command):
    words = list(command.words)
    program = words[0]
    if program == "make":
        for target in words[1:]:
            if not target.startswith("-") and "=" not in target:
                assert target in make_targets(), f"{command}: the Makefile has no target {target}"
    elif program in {"python", "python3", ".venv/bin/python"}:
        check_python(command, words[1:])
    elif program == "torchrun":
        script = next(i for i, word in enumerate(words) if word.endswith(".py"))
        check_python(command, words[script:])
    elif program in {"bash", "sh"}:
        assert (ROOT / words[1]).is_file(), f"{command}: {words[1]} does not exist"
    elif "/" in program:
        assert os.access(ROOT / program, os.X_OK), f"{command}: {program} is not an executable file of the repository"
    else:
        assert program in _ACCEPTED, f"{command}: unknown program {program}"


def test_there_are_commands_and_paths_to_check():
    """An extraction that no longer matches would leave the tests above nothing to look at."""
    assert len(COMMANDS) > 30 and sum(len(list(named_paths(path))) for path in FILES) > 100
