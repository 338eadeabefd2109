"""The benchmark of preprocessing compares only what is byte-identical."""

from __future__ import annotations

import gzip
import json
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
    found = [
        preprocess.measure_side(side, str(corpus), str(tokenizer_file), str(tmp_path / side), 1)
        for side in ("sentencepiece", "none")
    ]
    assert found[0]["hashes"] == found[1]["hashes"]
    sides: dict[str, dict[str, Any]] = {side: found[0] for side in preprocess.SIDES}
    monkeypatch.setattr(preprocess, "_in_own_process", lambda side, *_: sides[side])
    arguments = Namespace(
        scratch=tmp_path, text=tmp_path / "text", megabytes=[0], tokenizer_model=tokenizer_file, workers=[2]
    )
    report = preprocess.measure(arguments, "command")
    assert [row[:3] for row in report.rows][-1] == ["0", "gigatoken", "2"] and len(report.rows) == 6
    sides["segments"] = found[0] | {"hashes": {}}
    with pytest.raises(RuntimeError, match="no speed-up is reported: segments wrote other bytes"):
        preprocess.measure(arguments, "command")
