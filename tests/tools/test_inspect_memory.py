"""tools/inspect_memory.py from the command line: a small export traced, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.config.cli import tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.evaluation.memory_trace.memory_trace_options import MemoryTraceOptions
from megatron_fwpkm.evaluation.memory_trace.memory_trace_settings import MemoryTraceSettings
from tests.evaluation.conftest import folder, tiny_model, tokenizer  # noqa: F401
from tests.tools.in_process import run_tool


@pytest.mark.slow
def test_an_export_is_traced(
    folder: Path,  # noqa: F811
    tiny_model: Any,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_model.save_pretrained(tmp_path / "export")
    shutil.copy(folder / "tokenizer.model", tmp_path / "export")
    flags = ["--haystack", folder / "novel.txt.gz", "--length", 150, "--needles", 2, "--depth", 0.25, "--reads", 2]
    output = tmp_path / "out"
    run = run_tool(capsys, "inspect_memory", "--model", tmp_path / "export", *flags, "--output", output)
    assert run.returncode == 0, run.stderr
    assert "recall@1" in run.stdout and f"report: {output / 'report.html'}" in run.stdout
    shown = json.loads((output / "trace.json").read_text())["shown"]
    writers = [writer for slot in shown["tokens"][0]["layers"][0]["slots"] for writer in slot["writers"]]
    assert shown["depth"] == 0.25 and {writer[1] for writer in writers} <= {1, 2} and writers
    again = run_tool(capsys, "inspect_memory", "--model", tmp_path / "export", *flags, "--output", output, "--seed", 2)
    assert again.returncode == 1 and "different: seed" in again.stderr


def test_flags_reach_the_settings() -> None:
    words = "--model m --output o --haystack a b --length 99 --depth 0.5 --depths 3 --index 4 --samples 7 --needles 2"
    words += " --seed 9 --mode streaming --reads 3 --needle-key-words 1 --max-new-tokens 2"
    parser = add_tool_options(tool_parser(""), MemoryTraceOptions)
    settings = parse_tool(parser, MemoryTraceOptions, words.split()).settings()
    assert settings == MemoryTraceSettings(
        "m", ("a", "b"), 99, 0.5, 3, 4, 7, 2, settings.needle, 9, None, None, 2, "streaming", 3
    )
    assert settings.needle.key_words == 1 and settings.needle_settings().samples == (11,)


def test_a_text_needs_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", tmp_path, "--text", tmp_path / "a.txt", "--output", tmp_path / "out"]
    run = run_tool(capsys, "inspect_memory", *flags)
    assert run.returncode == 1 and "--text and --prompt go together" in run.stderr
