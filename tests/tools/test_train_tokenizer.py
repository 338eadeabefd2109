"""tools/train_tokenizer.py as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.tokenizers import build_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the tool and return what it said."""
    command = [sys.executable, str(ROOT / "tools" / "train_tokenizer.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_novel_becomes_a_tokenizer(tmp_path: Path) -> None:
    corpus = ROOT / "examples/quickstart/corpus/northanger_abbey.txt.gz"
    done = tool("--input", corpus, "--vocab-size", 700, "--output-prefix", tmp_path / "t", "--extra-pieces", "<sep>")
    assert done.returncode == 0, done.stderr
    rows = dict(line.strip().split("  ", 1) for line in done.stdout.splitlines())
    assert rows["pieces"].strip() == "700" and rows["model"].strip() == str(tmp_path / "t.model")
    assert build_tokenizer(DataConfig(tokenizer_model=str(tmp_path / "t.model"))).vocab_size == 700


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("few words\n")
    large = tool("--input", tmp_path / "a.txt", "--vocab-size", 9000, "--output-prefix", tmp_path / "t")
    assert (large.returncode, large.stdout) == (1, "")
    assert large.stderr.startswith(
        "error: --vocab-size 9000 is too large for this corpus; the largest possible value is 2"
    )
    assert large.stderr.count("\n") == 1
    (tmp_path / "empty.txt").touch()
    empty = tool("--input", tmp_path / "empty.txt", "--vocab-size", 900, "--output-prefix", tmp_path / "t")
    assert (empty.returncode, empty.stderr) == (1, "error: --input contains no text to train on\n")
    assert tool("--input", tmp_path / "a.txt").returncode == 2
    assert not list(tmp_path.glob("t*"))
