"""Runs a tool inside the test's process, where torch is imported already."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from megatron_fwpkm.config.cli import run_cli

ROOT = Path(__file__).resolve().parents[2]


class Done(NamedTuple):
    """What a tool left."""

    returncode: int
    stdout: str
    stderr: str


def run_tool(capsys: pytest.CaptureFixture[str], name: str, *arguments: object) -> Done:
    """Run tools/NAME.py with the arguments as its command line."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the types of their fields
    spec.loader.exec_module(module)
    capsys.readouterr()
    try:
        status = run_cli(module.main, [str(argument) for argument in arguments])
    except SystemExit as leaving:
        assert isinstance(leaving.code, int)
        status = leaving.code
    return Done(status, *capsys.readouterr())
