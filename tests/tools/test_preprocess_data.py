"""tools/preprocess_data.py as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_fwpkm.data.tokenizers.train_tokenizer import TokenizerOptions, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def tool(*arguments: object, name: str = "preprocess_data") -> subprocess.CompletedProcess[str]:
    """Run a tool and return what it said."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "a.txt").write_text("one two three four five six seven eight nine ten\n" * 20)
    return train_tokenizer(TokenizerOptions((str(folder / "a.txt"),), str(folder / "t"), 290)).model


TOOLS = ("preprocess_data", "train_tokenizer", "merge_datasets", "split_dataset", "inspect_dataset")


@pytest.mark.parametrize("name", TOOLS)
def test_help_is_quick_and_without_torch(name: str) -> None:
    started = time.monotonic()
    shown = tool("--help", name=name)
    assert shown.returncode == 0 and "--input" in shown.stdout
    assert time.monotonic() - started < 50, "well under a second on an idle machine"
    script = (
        "import runpy, sys\n"
        "try:\n"
        f"    runpy.run_path('tools/{name}.py', run_name='__main__')\n"
        "except SystemExit:\n"
        "    print(sorted({'torch', 'numpy', 'sentencepiece'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_run_and_its_table(tmp_path: Path, model: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one two"}\n{broken\n{"text": "three"}\n')
    done = tool(
        "--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-type", "SentencePieceTokenizer",
        "--tokenizer-model", model, "--json-keys", "text", "--append-eod", "--workers", 2, "--on-error", "quarantine",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"skipped {source}:2: bad JSON" in done.stderr
    rows = dict(line.strip().split("  ", 1) for line in done.stdout.splitlines())
    assert rows["documents"].strip() == "2" and rows["EOD tokens"].strip() == "2" and rows["skipped"].strip() == "1"
    assert rows["dataset"].strip() == str(tmp_path / "out_text_document")
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.jsonl", "out_quarantine.jsonl", *(f"out_text_document.{suffix}" for suffix in ("bin", "idx", "json"))
    }  # fmt: skip
    assert json.loads((tmp_path / "out_text_document.json").read_text())["options"]["append_eod"] is True
    assert rows["input"].strip() == "1 file: 1 JSON Lines"
    assert rows["quarantine"].strip() == str(tmp_path / "out_quarantine.jsonl")
    again = tool(
        "--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-model", model, "--append-eod",
        "--on-error", "quarantine", "--resume",
    )  # fmt: skip
    assert again.returncode == 0 and "complete since an earlier run" in again.stdout and "wall" not in again.stdout


def test_the_table_of_several_datasets(tmp_path: Path, model: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"a": "one", "b": "two three four"}\n' + '{"a": ""}\n' * 15)
    done = tool(
        "--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-model", model, "--json-keys", "a", "b",
        "--append-eod", "--on-error", "skip",
    )  # fmt: skip
    assert done.returncode == 0 and "skipped 5 more" in done.stderr, done.stderr
    counts = [json.loads((tmp_path / f"out_{key}_document.json").read_text())["tokens"] for key in "ab"]
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "documents 1 in each dataset" in lines and f"tokens {sum(counts):,} (uint16)" in lines
    assert "EOD tokens 2" in lines
    for key, count in zip("ab", counts, strict=True):
        assert any(line.startswith(f"dataset {tmp_path}/out_{key}_document: {count} tokens, ") for line in lines)


def test_text_files(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n")
    counts = {}
    for documents in ("file", "paragraph", "line"):
        done = tool(
            "--input", tmp_path / "a.txt", "--output-prefix", tmp_path / "out", "--tokenizer-model", model,
            "--txt-documents", documents, "--on-error", "skip", "--overwrite",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        counts[documents] = json.loads((tmp_path / "out_text_document.json").read_text())["documents"]
    assert counts == {"file": 1, "paragraph": 2, "line": 3}


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one two three"}\n' * 5000)
    limited = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "runpy.run_path('tools/preprocess_data.py', run_name='__main__')\n"
    )
    arguments = ["--input", tmp_path / "a.jsonl", "--output-prefix", tmp_path / "out", "--tokenizer-model", model]
    command = [sys.executable, "-c", limited, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    told = "File too large; free space there, or give an --output-prefix on another disk"
    assert done.stderr == f"error: {tmp_path / 'out_text_document.bin.partial'}: {told}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_errors_are_one_line(tmp_path: Path, model: Path) -> None:
    missing = tool("--input", tmp_path / "absent", "--output-prefix", tmp_path / "out", "--tokenizer-model", model)
    assert (missing.returncode, missing.stdout) == (1, "")
    advice = "give an existing file or folder, or a pattern that matches files"
    assert missing.stderr == f"error: --input {tmp_path / 'absent'} does not exist; {advice}\n"
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n')
    bad = tool("--input", tmp_path / "a.jsonl", "--output-prefix", tmp_path / "out", "--tokenizer-model", model)
    assert bad.returncode == 1 and bad.stderr.startswith(
        f"error: {tmp_path / 'a.jsonl'}:2: blank line; nothing was written"
    )
    assert bad.stderr.count("\n") == 1
    assert tool("--input", "x").returncode == 2
    which = tool("--input", "x", "--output-prefix", "y", "--num-shards", 4)
    assert which.returncode == 2 and "--num-shards 4 requires --shard-id, an integer from 0 to 3" in which.stderr
    for words, said in (
        (("--merge-shards",), "--merge-shards requires --num-shards of at least 2, and no --shard-id"),
        (("--merge-shards", "--num-shards", 4, "--shard-id", 0), "--merge-shards requires --num-shards of at least 2"),
        (("--shard-retries", 3), "--shard-retries 3 has no effect without --ray-address: give it, too"),
        (("--ray-address", "local"), "--ray-address requires --num-shards of at least 2, and no --shard-id"),
        (("--ray-address", "local", "--num-shards", 4, "--merge-shards"), "remove --merge-shards"),
    ):
        wrong = tool("--input", "x", "--output-prefix", "y", *words)
        assert wrong.returncode == 2 and said in wrong.stderr
