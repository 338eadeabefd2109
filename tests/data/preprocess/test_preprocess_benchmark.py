"""The benchmark of preprocessing compares only what is byte-identical."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import preprocess

from ..conftest import novel


def test_documents_are_cut_from_all_kinds_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<html><style>x</style><p>one &amp; two</p></html>")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"t" * 6000))
    (tmp_path / "c.png").write_bytes(b"no text")
    documents, size = preprocess.build_corpus(tmp_path, tmp_path / "out.jsonl", 6000)
    texts = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert texts == ["one & two", "t" * 2500, "t" * 2500, "t" * 1000] and documents == 4
    assert size == (tmp_path / "out.jsonl").stat().st_size
    with pytest.raises(RuntimeError, match="holds .* bytes of text, less than --megabytes"):
        preprocess.build_corpus(tmp_path, tmp_path / "out.jsonl", 10**6)


def test_sides_agree_and_a_difference_is_refused(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(novel(40_000))
    corpus = tmp_path / "corpus.jsonl"
    preprocess.build_corpus(tmp_path / "text", corpus, 20_000)
    kind = "SentencePieceTokenizer"
    found = [
        preprocess.measure_side(preprocess.Side(name, str(corpus), kind, str(tokenizer_file), str(tmp_path / name)))
        for name in ("library", "none")
    ]
    assert found[0]["hashes"] == found[1]["hashes"]
    sides: dict[str, dict[str, Any]] = {name: found[0] for name in preprocess.SIDES[kind]}
    monkeypatch.setattr(preprocess, "_in_own_process", lambda side: sides[side.name])
    arguments = Namespace(
        scratch=tmp_path, text=tmp_path / "text", megabytes=[0], tokenizer_model=tokenizer_file, workers=[2],
        tokenizer_type=kind, megatron_lm=None, megatron_python=Path(sys.executable),
    )  # fmt: skip
    report = preprocess.measure(arguments, "command")
    assert [row[:3] for row in report.rows][-1] == ["0", "gigatoken", "2"] and len(report.rows) == 6
    sides["segments"] = found[0] | {"hashes": {}}
    with pytest.raises(RuntimeError, match="no speed-up is reported: segments wrote other bytes"):
        preprocess.measure(arguments, "command")


def test_a_side_has_a_peak_of_its_own(tmp_path: Path, tokenizer_file: Path) -> None:
    """The system's own count of a process begins with the peak of the process that started it."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": novel(2_000)}) + "\n")
    side = preprocess.Side("library", str(corpus), "SentencePieceTokenizer", str(tokenizer_file), str(tmp_path / "out"))
    ballast = b"x" * 400_000_000
    found = preprocess._in_own_process(side)
    assert 20_000_000 < found["peak_bytes"] < len(ballast) / 2


def test_tools_of_a_checkout_of_megatron_are_sides(tmp_path: Path) -> None:
    """A pretended checkout, whose tool writes what it was asked for."""
    tool = tmp_path / "tools" / "preprocess_data_fast.py"
    tool.parent.mkdir()
    tool.write_text(
        "import sys\nflag = sys.argv.index('--output-prefix')\n"
        "for suffix in ('.bin', '.idx'):\n"
        "    open(sys.argv[flag + 1] + '_text_document' + suffix, 'w').write(' '.join(sys.argv[1:]))\n"
        "sum(range(10**6))\n"
    )
    arguments = Namespace(
        megatron_lm=tmp_path, tokenizer_type="HuggingFaceTokenizer", megabytes=[1], workers=[2, 3],
    )  # fmt: skip
    runs = preprocess._runs(arguments, 1)
    assert runs[3:] == [("megatron", 1), ("megatron-gigatoken", 1), ("gigatoken", 2), ("gigatoken", 3)]
    assert ("megatron-gigatoken", 1) not in preprocess._runs(
        Namespace(**vars(arguments) | {"tokenizer_type": "SentencePieceTokenizer"}), 1
    )
    side = preprocess.Side(
        "megatron-gigatoken", "in.jsonl", "HuggingFaceTokenizer", "t", str(tmp_path / "out"), 1, sys.executable,
        str(tmp_path),
    )  # fmt: skip
    found = preprocess.measure_side(side)
    asked = (tmp_path / "out_text_document.bin").read_text()
    assert asked == (
        f"--use-gigatoken --input in.jsonl --output-prefix {tmp_path / 'out'} --tokenizer-type HuggingFaceTokenizer "
        "--tokenizer-model t --append-eod"
    )
    assert found["hashes"][".bin"] == hashlib.sha256(asked.encode()).hexdigest() and found["cpu_seconds"] > 0
    tool.write_text("raise SystemExit('no such tokenizer')")
    with pytest.raises(RuntimeError, match="preprocess_data_fast.py failed with exit code 1:\nno such tokenizer"):
        preprocess.measure_side(side)
