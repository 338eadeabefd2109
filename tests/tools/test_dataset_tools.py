"""From a folder of mixed files to split, inspected datasets, as a user does it (docs/data.md)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from megatron_fwpkm.data.tokenizers.train_tokenizer import TokenizerOptions, train_tokenizer

from .test_preprocess_data import tool


def test_the_way_of_the_guide(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.txt").write_text("one two three four five six seven eight nine ten\n" * 20)
    rows = [{"text": f"one two number {number % 30}"} for number in range(40)]
    (raw / "b.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    (raw / "c.json").write_text(json.dumps(rows[:5], indent=1))
    model = train_tokenizer(TokenizerOptions((str(raw),), str(tmp_path / "t"), 290)).model
    for shard in range(2):
        made = tool(
            "--input", raw, "--output-prefix", tmp_path / "out", "--tokenizer-model", model, "--append-eod",
            "--shard-id", shard, "--num-shards", 2, "--verify", 5, "--resume", "--accelerator", "segments",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    pattern, merged = f"{tmp_path}/out-*_text_document", tmp_path / "all"
    done = tool("--input", pattern, "--output-prefix", merged, "--deduplicate", name="merge_datasets")
    assert done.returncode == 0 and "15" in done.stdout.split("duplicates left out")[1], done.stderr
    done = tool("--input", merged, "--output-prefix", merged, "--shares", "80,20,0", name="split_dataset")
    assert done.returncode == 0 and "all_valid  6 documents" in done.stdout, done.stdout + done.stderr
    shown = tool(
        "--input", f"{merged}_train", "--check", "--samples", 2, "--tokenizer-model", model, "--png",
        tmp_path / "h.png", name="inspect_dataset",
    )  # fmt: skip
    assert shown.returncode == 0 and "--- document" in shown.stdout and "25" in shown.stdout, shown.stderr
    assert (tmp_path / "h.png").is_file() and f"plotted to {tmp_path / 'h.png'}" in shown.stdout
    other = train_tokenizer(TokenizerOptions((str(raw),), str(tmp_path / "other"), 289)).model
    for flags, told in (
        (("--tokenizer-model", other), "was made with a different tokenizer (SentencePieceTokenizer, 290 ids)"),
        (("--png", tmp_path / "absent" / "h.png"), "absent does not exist"),
    ):
        wrong = tool("--input", f"{merged}_train", "--check", *flags, name="inspect_dataset")
        assert wrong.returncode == 1 and told in wrong.stderr, wrong.stderr
    with open(f"{merged}_train.bin", "r+b") as stream:
        stream.write(b"\x09\x00")
    broken = tool("--input", f"{merged}_train", "--check", name="inspect_dataset")
    assert broken.returncode == 1 and "its SHA-256 differs" in broken.stderr


@pytest.mark.parametrize("share", ["1,2,x", ""])
def test_shares_are_numbers(share: str) -> None:
    wrong = tool("--input", "a", "--output-prefix", "b", "--shares", share, name="split_dataset")
    assert wrong.returncode == 2 and "is not three numbers such as 98,1,1" in wrong.stderr
