"""Corpora of mixed schemas: `text|body` is the first of these keys that holds text, in every tool and kind of input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.data.corpus import records
from megatron_fwpkm.data.corpus.records import BadRecord, Record
from megatron_fwpkm.data.tokenizers import Tokenizer

from ..conftest import novel
from ..preprocess.test_preprocess import documents_of, run
from ..tokenizers.test_train_tokenizer import train
from .test_inputs import read

ROWS: list[Any] = [
    {"text": "one", "body": "not this"},
    {"body": "two"},
    {"text": None, "body": "three"},
    {"text": " ", "meta": {"body": "four"}},
    {"other": "nothing"},
    {"text": "", "body": None},
    {"text": ["no", "text"], "body": "never instead of what is broken"},
    {"meta": {"body": "five"}},
]
KEY = "text|body|meta.body"
BAD = [
    (5, "missing key", "'text' | 'body' | 'meta.body'"),
    (6, "null", "'body'"),
    (7, "not a string", "'text' has type list"),
]


def told(found: list[Record | BadRecord]) -> tuple[list[str], list[tuple[int, str, str]]]:
    good = [record.texts[0] for record in found if isinstance(record, Record)]
    return good, [(bad.line, bad.reason, bad.detail) for bad in found if isinstance(bad, BadRecord)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "without orjson"])
def test_the_first_key_that_holds_text(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text(json.dumps(ROWS) if kind == "json" else "\n".join(map(json.dumps, ROWS)))
    if kind == "without orjson":
        monkeypatch.setattr(records, "orjson", None)
    assert told(read([path], (KEY,))) == (["one", "two", "three", "four", "five"], BAD)
    assert told(read([path], ("body|text",)))[0][:3] == ["not this", "two", "three"]


def test_columns_of_parquet_files_of_two_schemas(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    for name, rows in (
        ("a", [{"text": "one", "n": 1}, {"text": None, "n": 2}]),
        ("b", [{"meta": {"body": "two"}, "n": 1}]),
        ("c", [{"text": None, "body": "three"}]),
    ):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    found = read([tmp_path / f"{name}.parquet" for name in "abc"], (KEY,))
    assert told(found) == (["one", "two", "three"], [(2, "null", "'text'")])
    with pytest.raises(ValueError, match=r"a\.parquet has no column body or meta .*; its columns are text, n"):
        read([tmp_path / "a.parquet"], ("text", "body|meta.body"))


def test_a_dataset_has_the_name_of_its_first_key(tmp_path: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"name": "a", **row}) + "\n" for row in ROWS))
    keys = (KEY, "title|name")
    report = run(tmp_path, tokenizer_file, source, json_keys=keys, on_error="skip", verify=100)
    assert report.prefixes == [str(tmp_path / "out_text_document"), str(tmp_path / "out_title_document")]
    assert [tokenizer.decode(d) for d in documents_of(report.prefixes[0])] == ["one", "two", "three", "four", "five"]
    assert [tokenizer.decode(d) for d in documents_of(report.prefixes[1])] == ["a"] * 5
    assert json.loads((tmp_path / "out_text_document.json").read_text())["options"]["json_key"] == KEY
    assert report.skipped == {"missing key": 1, "null": 1, "not a string": 1}
    blended = run(tmp_path, tokenizer_file, source, json_keys=keys, on_error="skip", blend_keys=True)
    assert blended.prefixes == [str(tmp_path / "out_text_title_document")] and blended.documents == 10


@pytest.mark.parametrize("keys", [("text|",), ("a|b", ""), ("a|a",)])
def test_keys_that_are_none(tmp_path: Path, tokenizer_file: Path, keys: tuple[str, ...]) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("{}")
    with pytest.raises(ValueError, match=r"--json-keys .*: '.*' is invalid; give a key, or alternatives such"):
        run(tmp_path, tokenizer_file, source, json_keys=keys)
    with pytest.raises(ValueError, match="'.*' is invalid"):
        train(tmp_path, source, json_keys=keys)


def test_two_datasets_of_one_name(tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(ValueError, match=r"--json-keys text\|a text: give at least one key, and each key once"):
        run(tmp_path, tokenizer_file, tmp_path, output_prefix="x/y", json_keys=("text|a", "text"))


def test_a_tokenizer_learns_from_all_keys_and_from_stand_ins(tmp_path: Path) -> None:
    parts = [part for part in novel(30_000).split("\n\n") if part.strip()][:54]
    plain, mixed, several = tmp_path / "plain.jsonl", tmp_path / "mixed.jsonl", tmp_path / "several.jsonl"
    plain.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
    mixed.write_text("".join(json.dumps({"body" if i % 2 else "text": part}) + "\n" for i, part in enumerate(parts)))
    pairs = zip(parts[::2], parts[1::2], strict=False)
    several.write_text("".join(json.dumps({"a": one, "b": two}) + "\n" for one, two in pairs))
    expected = train(tmp_path, plain, output_prefix=str(tmp_path / "plain")).model.read_bytes()
    report = train(tmp_path, mixed, output_prefix=str(tmp_path / "mixed"), json_keys=("text|body",))
    assert report.model.read_bytes() == expected
    report = train(tmp_path, several, output_prefix=str(tmp_path / "several"), json_keys=("a", "b"))
    assert report.model.read_bytes() == expected
