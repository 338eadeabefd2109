"""--verify compares as many documents as it was asked for, whatever the inputs, and sees wrong tokens."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.corpus import input_files as corpus
from megatron_fwpkm.data.corpus.records import Block, Cursor
from megatron_fwpkm.data.preprocess import journal
from megatron_fwpkm.data.preprocess import run as preprocess
from megatron_fwpkm.data.preprocess.document_sample import DocumentSample, SampledDocument, draw_documents
from megatron_fwpkm.data.preprocess.verification import check_sample

from ..conftest import novel
from .test_preprocess import jsonl, run
from .test_resume import Killed, source, stopping_after

__all__ = ["source"]  # a fixture
Sample = list[tuple[int, int, str]]


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Dataset, number and text of the documents that each run compared."""
    taken = list[Sample]()

    def taking(sample: DocumentSample, *others: Any) -> str:
        taken.append([(dataset, number, text) for _, dataset, number, text in sample.documents])
        return check_sample(sample, *others)

    monkeypatch.setattr(preprocess, "check_sample", taking)
    return taken


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of 340 records of two keys: a large file, the same size compressed, and 40 files of a line each."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    words = iter(novel(60_000).split())
    lines = [json.dumps({"title": next(words), "body": " ".join(next(words) for _ in range(9))}) for _ in range(340)]
    (folder / "a.jsonl").write_text("\n".join(lines[:150]) + "\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[150:300]).encode()))
    for number, line in enumerate(lines[300:]):
        (folder / f"c{number:02}.jsonl").write_text(line)
    return folder


@pytest.mark.parametrize(("asked", "compared"), [(1, 1), (100, 100), (679, 679), (680, 680), (5000, 680)])
def test_as_many_documents_as_asked_for(
    tmp_path: Path, tokenizer_file: Path, mixed: Path, samples: list[Sample], asked: int, compared: int
) -> None:
    report = run(tmp_path, tokenizer_file, mixed, json_keys=("title", "body"), verify=asked)
    assert report.documents == 340 and report.verified.startswith(f"{compared} document")
    assert len(set(samples[0])) == len(samples[0]) == compared
    if asked >= 100:  # each file of both datasets: records 0-149 and 150-299 are two files, the others a file each
        files = Counter((dataset, max(number // 150, number - 298)) for dataset, number, _ in samples[0])
        assert len(files) == 2 * 42
    if asked == 100:  # 16 are not the ones that stand for a file: mostly of the large ones
        assert sum(count - 1 for count in files.values()) == 16


def test_the_same_documents_however_the_run_went(
    tmp_path: Path, tokenizer_file: Path, mixed: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"json_keys": ("title", "body"), "verify": 200}
    run(tmp_path / "one", tokenizer_file, mixed, **options)
    run(tmp_path / "two", tokenizer_file, mixed, workers=2, **options)
    monkeypatch.setattr(journal, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as inner, suppress(Killed):
        inner.setattr(preprocess._Run, "_take", stopping_after(20))
        run(tmp_path / "cut", tokenizer_file, mixed, resume=True, **options)
    with pytest.raises(ValueError, match="--verify 201 is larger than --verify 200 of the interrupted run"):
        run(tmp_path / "cut", tokenizer_file, mixed, resume=True, **options | {"verify": 201})
    run(tmp_path / "cut", tokenizer_file, mixed, resume=True, **options)
    assert samples[0] == samples[1] == samples[2] and len(samples[0]) == 200


def test_each_shard_compares_as_many(
    tmp_path: Path, tokenizer_file: Path, mixed: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 700)
    for shard in range(3):
        report = run(tmp_path, tokenizer_file, mixed, json_keys=("body",), verify=60, shard_id=shard, num_shards=3)
        assert len(samples[shard]) == min(60, report.documents)


def test_one_long_document_among_short_ones(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["ten words"] * 200 + ["word " * 1_000_000])  # 5 of 6 megabytes
    data = DataConfig(tokenizer_type="ByteLevelTokenizer")
    report = run(tmp_path, None, source, data=data, verify=100)
    assert report.verified == "100 documents hold the tokens of their text and decode back to it"


def test_documents_have_the_same_chance() -> None:
    counts = Counter[int]()
    for file in range(200):
        sample = DocumentSample(5)
        for place in range(8):
            block = Block("", "jsonl", place, b"", 0, file_number=file, end=Cursor(place), sample_below=sample.below)
            sample.offer(file, draw_documents(block, [["x"] * 5], 5), [5 * place])
        assert len(sample.documents) == 5
        counts.update(document.number for document in sample.documents)
    assert 200 <= sum(counts[number] for number in range(5)) < 260  # one of the first block stands for the file
    assert all(6 <= counts[number] <= 40 for number in range(5, 40))  # 22 each, give or take 4.5


def test_only_what_may_be_chosen_is_carried() -> None:
    block = Block("", "jsonl", 1, b"", 0, sample_below=0.1)
    found = draw_documents(block, [["x"] * 1000, ["y"] * 1000], 1000)
    assert 150 < len(found) < 250 and {document.dataset for document in found} == {0, 1}
    assert len(draw_documents(block, [["x"] * 1000], 7)) == 8
    assert draw_documents(block, [[], []], 7) == ()


def test_a_sample_goes_on_from_its_state() -> None:
    found = [SampledDocument(draw / 40, 0, draw, str(draw)) for draw in range(40)]
    whole, half, going_on = DocumentSample(10), DocumentSample(10), DocumentSample(10)
    for sample, offered in ((whole, found), (half, found[20:])):
        sample.offer(0, offered, [0])
    going_on.restore(json.loads(json.dumps(half.state())))
    going_on.offer(0, found[:20], [0])
    assert going_on.documents[-1].number == 20 and whole.documents[-1].number == 9
    assert [document.number for document in going_on.documents] == [*range(9), 20]  # 20 stands for the file


def test_verification_sees_wrong_tokens(
    tmp_path: Path, tokenizer_file: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(tmp_path, tokenizer_file, source, on_error="skip", verify=5)
    assert report.verified == "5 documents hold the tokens of their text and decode back to it"
    take = preprocess._Run._take

    def tampering(self: Any, block: Any) -> None:
        from dataclasses import replace

        take(self, replace(block, tokens=(b"\x05\x00" + block.tokens[0][2:],) if block.tokens[0] else block.tokens))

    monkeypatch.setattr(preprocess._Run, "_take", tampering)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 1)  # a document per block
    with pytest.raises(ValueError, match=r"--verify: document 0 of .*_document does not hold the tokens of its text"):
        run(tmp_path, tokenizer_file, source, on_error="skip", verify=500, overwrite=True)
