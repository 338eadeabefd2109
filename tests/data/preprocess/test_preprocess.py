"""Preprocessing: every good document once, in order, with Megatron's bytes; every bad one told of; never a hang."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from megatron_fwpkm.config import DataConfig, ModelConfig, PretrainConfig, TrainingConfig
from megatron_fwpkm.data.corpus import input_files as corpus
from megatron_fwpkm.data.preprocess import encoding
from megatron_fwpkm.data.preprocess.run import PreprocessOptions, PreprocessReport, preprocess
from megatron_fwpkm.data.progress_report import ProgressReport, clock
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer
from megatron_fwpkm.data.training.datasets import build_datasets
from tests.quick_cases import examples

from ..conftest import ROOT, novel
from .dying_worker import die


def quiet() -> ProgressReport:
    return ProgressReport(0, stream=io.StringIO())


def run(tmp_path: Path, tokenizer_file: Path | None, *inputs: Path, **changes: Any) -> PreprocessReport:
    options = PreprocessOptions(
        inputs=tuple(str(path) for path in inputs),
        output_prefix=str(tmp_path / "out"),
        data=DataConfig(tokenizer_model=str(tokenizer_file)),
    )
    return preprocess(dataclasses.replace(options, **changes), quiet())


def documents_of(prefix: str) -> list[list[int]]:
    opened = IndexedDataset(prefix)
    return [opened[index].tolist() for index in range(len(opened))]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_documents_become_megatrons_bytes(tmp_path: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    texts = [part for part in novel(40_000).split("\n\n") if part.strip()] + ["literal </s> and <s>"]
    report = run(tmp_path, tokenizer_file, jsonl(tmp_path / "a.jsonl", texts), append_eod=True)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for text in texts:
        ids = tokenizer.encode(text) + [tokenizer.eod]
        builder.add_document(np.array(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    prefix = str(tmp_path / "out_text_document")
    assert report.prefixes == [prefix]
    for suffix in (".bin", ".idx"):
        assert Path(prefix + suffix).read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    documents = documents_of(prefix)
    assert [document.count(tokenizer.eod) for document in documents] == [1] * len(texts)
    assert tokenizer.decode(documents[-1]) == "literal </s> and <s>"
    assert (report.documents, report.tokens, report.eods) == (len(texts), [sum(map(len, documents))], len(texts))
    assert report.text_bytes == [sum(len(text.encode()) for text in texts)]


def test_a_large_vocabulary_takes_32_bits(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["1 70000 3"])
    data = DataConfig(tokenizer_type="NullTokenizer", vocab_size=70001)
    report = preprocess(PreprocessOptions((str(source),), str(tmp_path / "out"), data), quiet())
    assert report.dtype == "int32" and documents_of(report.prefixes[0]) == [[1, 70000, 3]]


def test_each_key_gets_a_dataset(tmp_path: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"title": "One", "body": "first text"}\n{"title": "Two", "body": "second"}\n')
    report = run(tmp_path, tokenizer_file, source, json_keys=("title", "body"))
    found = [[tokenizer.decode(document) for document in documents_of(prefix)] for prefix in report.prefixes]
    assert found == [["One", "Two"], ["first text", "second"]]


def test_the_sidecar_tells_how_it_was_made(tmp_path: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one"}\n\n{"text": "two words"}\n')
    report = run(tmp_path, tokenizer_file, source, append_eod=True, on_error="skip")
    sidecar = json.loads(Path(report.prefixes[0] + ".json").read_text())
    assert sidecar["tokenizer"] == {
        "type": "SentencePieceTokenizer", "identity": tokenizer.identity, "vocab_size": 900, "eod": 2
    }  # fmt: skip
    assert sidecar["documents"] == sidecar["eods"] == 2 and [sidecar["tokens"]] == report.tokens
    assert sidecar["skipped"] == {"blank line": 1} and sidecar["dtype"] == "uint16"
    content = source.read_bytes()
    assert sidecar["inputs"] == [
        {"path": str(source), "bytes": len(content), "kind": "jsonl", "compression": "none",
         "sha256": hashlib.sha256(content).hexdigest()}
    ]  # fmt: skip


def test_training_reads_it_and_refuses_another_tokenizer(tmp_path: Path, tokenizer_file: Path) -> None:
    report = run(tmp_path, tokenizer_file, jsonl(tmp_path / "a.jsonl", [novel(20_000)]), append_eod=True)
    data = DataConfig(data_path=tuple(report.prefixes), split="1,0,0", tokenizer_model=str(tokenizer_file))
    config = PretrainConfig(
        model=ModelConfig(seq_length=32), data=data, training=TrainingConfig(train_iters=5, eval_iters=0)
    )
    train, _, _ = build_datasets(config, build_tokenizer(data))
    assert train[0]["tokens"].shape == (32,)
    other = build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=899))
    with pytest.raises(ValueError, match="was made with a different tokenizer"):
        build_datasets(config, other)


BAD = b'{"text": "good"}\n{bad\n\n{"text": null}\n{"text": "also \\ud800"}\n{"text": "\xff"}\n{"text": "last"}\n'


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_records_fail_are_skipped_or_kept(tmp_path: Path, tokenizer_file: Path, workers: int) -> None:
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress(BAD))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz:2: bad JSON .*nothing was written; use --on-error skip"):
        run(tmp_path, tokenizer_file, source, workers=workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl.gz"]
    report = run(tmp_path, tokenizer_file, source, workers=workers, on_error="skip")
    expected = {"bad JSON": 1, "blank line": 1, "null": 1, "cannot be encoded": 1, "bad UTF-8": 1}
    assert report.documents == 2 and dict(report.skipped) == expected
    assert report.bad_records[1] == f"{source}:3: blank line"
    assert ("skipped", "5") in report.rows() and ("  bad UTF-8", "1") in report.rows()
    run(tmp_path, tokenizer_file, source, workers=workers, on_error="quarantine", overwrite=True)
    rows = [json.loads(line) for line in (tmp_path / "out_quarantine.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in rows] == [
        (2, "bad JSON"), (3, "blank line"), (4, "null"), (5, "cannot be encoded"), (6, "bad UTF-8")
    ]  # fmt: skip
    assert rows[0]["record"] == "{bad" and "record" not in rows[4] and rows[4]["record_base64"]
    with pytest.raises(ValueError, match="already exists"):
        run(tmp_path, tokenizer_file, source, on_error="quarantine", output_prefix=str(tmp_path / "out"))


def test_wrong_options_are_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["x"])
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    blank = tmp_path / "blank.jsonl"
    blank.write_text("\n\n")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (source, {"workers": 0}, "--workers 0 must be at least 1"),
        (source, {"json_keys": ("text", "text")}, "--json-keys text text: give at least one key, and each key once"),
        (source, {"data": DataConfig()}, "needs --tokenizer-model"),
        (tmp_path / "absent.jsonl", {}, "absent.jsonl does not exist"),
        (empty, {}, r"contains no documents \(the input is empty\); nothing was written"),
        (blank, {"on_error": "skip"}, r"contains no documents \(2 x blank line\)"),
    ]
    for path, changes, message in cases:
        with pytest.raises(ValueError, match=message):
            run(tmp_path, tokenizer_file, path, **changes)
    assert not list(tmp_path.glob("out*"))


def test_existing_output_is_kept_unless_told(tmp_path: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["first"])
    run(tmp_path, tokenizer_file, source)
    with pytest.raises(ValueError, match=r"out_text_document\.bin already exists"):
        run(tmp_path, tokenizer_file, source)
    report = run(tmp_path, tokenizer_file, jsonl(source, ["second"]), overwrite=True)
    assert [tokenizer.decode(document) for document in documents_of(report.prefixes[0])] == ["second"]


TEXT = st.text(st.sampled_from("ab \n\t\u2028\u00e9\U0001f600</s>"), min_size=1, max_size=15)


@examples(5, 12, HealthCheck.function_scoped_fixture)
@given(
    contents=st.lists(st.lists(st.one_of(TEXT, st.none()), max_size=8), min_size=1, max_size=3),
    compressed=st.booleans(),
    block_bytes=st.integers(1, 80),
    workers=st.sampled_from([1, 1, 1, 2]),  # starting processes takes most of the time
)
def test_every_good_document_once_in_order(
    tmp_path: Path,
    tokenizer_file: Path,
    tokenizer: Tokenizer,
    contents: list[list[str | None]],
    compressed: bool,
    block_bytes: int,
    workers: int,
) -> None:
    inputs = []
    for number, texts in enumerate(contents):
        data = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
        inputs.append(tmp_path / f"{number}.jsonl")
        inputs[-1].write_bytes(gzip.compress(data) if compressed else data)
    good = [text for texts in contents for text in texts if text is not None and text.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK_BYTES", block_bytes)
        if not good:
            with pytest.raises(ValueError, match="contains no document"):
                run(tmp_path, tokenizer_file, *inputs, on_error="skip", overwrite=True)
            return
        options = {"on_error": "skip", "overwrite": True, "append_eod": True, "workers": workers}
        report = run(tmp_path, tokenizer_file, *inputs, **options)
    documents = documents_of(report.prefixes[0])
    assert [tokenizer.decode(document) for document in documents] == good
    assert all(document[-1] == tokenizer.eod for document in documents)
    assert sum(report.skipped.values()) == sum(map(len, contents)) - len(good)


@pytest.mark.parametrize("several", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_workers_writes_the_same_bytes(
    several: int, tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 3000)  # many blocks
    texts = [part for part in novel(60_000).split("\n\n") if part.strip()]
    source = jsonl(tmp_path / "a.jsonl", texts[:20] + [" "] + texts[20:])
    outputs = []
    for workers in (1, several):
        report = run(tmp_path, tokenizer_file, source, workers=workers, overwrite=True, on_error="skip")
        outputs.append([Path(f"{report.prefixes[0]}.{suffix}").read_bytes() for suffix in ("bin", "idx", "json")])
        assert report.skipped == {"empty document": 1} and report.bad_records == [
            f"{source}:21: empty document ('text')"
        ]
    assert outputs[0] == outputs[1]


def test_workers_choose_the_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that gives them work loads none, which would take as long as they take."""
    monkeypatch.setattr(encoding, "choose_accelerator", None)
    source = jsonl(tmp_path / "a.jsonl", ["some words"] * 5)
    data = DataConfig(tokenizer_type="ByteLevelTokenizer")
    report = run(tmp_path, None, source, workers=2, accelerator="segments", data=data)
    assert report.accelerator == "the plain tokenizer" and report.documents == 5
    assert "note: --accelerator segments: segments: only SentencePieceTokenizer" in capsys.readouterr().err


def test_the_death_of_a_worker_is_an_error(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_encode", die)
    source = jsonl(tmp_path / "a.jsonl", ["x"] * 5)
    with pytest.raises(
        ValueError, match="one of the 2 worker processes died.*nothing was written; try fewer --workers"
    ):
        run(tmp_path, tokenizer_file, source, workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def _children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path: Path, tokenizer_file: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["some words"] * 400_000)
    code = (
        "from megatron_fwpkm.config import DataConfig\n"
        "from megatron_fwpkm.data.preprocess.run import *\n"
        f"data = DataConfig(tokenizer_model={str(tokenizer_file)!r})\n"
        f"preprocess(PreprocessOptions(({str(source)!r},), {str(tmp_path / 'out')!r}, data, workers=2))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 120  # a process that imports torch on a busy machine
    workers: list[int] = []
    while len(workers) < 3 and time.monotonic() < deadline and process.poll() is None:  # two and the resource tracker
        workers = _children(process.pid)
        time.sleep(0.05)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(worker) for worker in workers)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_progress_lines() -> None:
    stream = io.StringIO()
    progress = ProgressReport(1000, stream=stream, interval=0.0)
    time.sleep(0.01)
    progress.update(250, 2_000_000, 500)
    progress.update(500, 4_000_000)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("25 %  ") and " MB/s  " in first and " tokens/s  ETA 0:" in first
    assert second.startswith("50 %  ") and "tokens" not in second
    silent = io.StringIO()
    ProgressReport(10, stream=silent).update(5, 5, 5)
    assert silent.getvalue() == "", "not a terminal: a line every ten seconds only"
    assert (clock(59.6), clock(3661), clock(-1)) == ("1:00", "1:01:01", "0:00")


def test_names_that_are_no_unicode(tmp_path: Path, tokenizer_file: Path) -> None:
    """They are told of at the end, when all the work is done."""
    source = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    source.write_text('{"text": "a"}\n{')
    report = run(tmp_path, tokenizer_file, source, on_error="quarantine")
    sidecar = json.loads(Path(report.prefixes[0] + ".json").read_text(encoding="utf-8"))
    row = json.loads((tmp_path / "out_quarantine.jsonl").read_text(encoding="utf-8"))
    assert sidecar["inputs"][0]["path"] == row["file"] == str(source)


def test_outputs_are_not_put_among_the_inputs(tmp_path: Path, tokenizer_file: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ["a"])
    for prefix in ("out", "deeper/out"):
        with pytest.raises(
            ValueError, match=f"--output-prefix .*{prefix} is inside the folder --input .*, so the next run"
        ):
            run(tmp_path, tokenizer_file, tmp_path, output_prefix=str(tmp_path / prefix))
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_document_longer_than_an_index_can_hold_is_bad(
    tmp_path: Path, tokenizer_file: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["one", "one two three four", "two"])
    longest = len(tokenizer.encode("one two three four"))  # and its EOD
    monkeypatch.setattr(encoding, "_LONGEST", longest)
    report = run(tmp_path, tokenizer_file, source, append_eod=True, on_error="skip")
    assert report.documents == 2 and report.skipped == {"too long": 1}
    assert report.bad_records == [f"{source}:2: too long (more than {longest} tokens)"]
    monkeypatch.setattr(encoding, "_LONGEST", longest + 1)
    assert run(tmp_path, tokenizer_file, source, append_eod=True, overwrite=True).documents == 3
