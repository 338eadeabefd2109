"""Every kind of input gives the same documents; folders, patterns, pipes and shards lose and double nothing."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from megatron_fwpkm.data.corpus import input_files as corpus
from megatron_fwpkm.data.corpus.input_files import corpus_blocks, open_corpus
from megatron_fwpkm.data.corpus.records import BadRecord, Cursor, Record, records
from tests.quick_cases import examples

TEXTS = ["one", "zwei \u00e9\u2028", 'drei [1, {2}] "quoted" \\ ]', "\U0001f600 " * 50]


def read(paths: list[Path | str], keys: tuple[str, ...] = ("text",), **options: Any) -> list[Record | BadRecord]:
    files = open_corpus([str(path) for path in paths], options.pop("txt", "file"), **options)
    return [record for block in corpus_blocks(files, keys) for record in records(block.lean(), keys)]


def texts(found: list[Record | BadRecord]) -> list[str]:
    return [record.texts[0] for record in found if isinstance(record, Record)]


def jsonl(values: list[str]) -> bytes:
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


COMPRESSIONS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressions_are_told_by_content(tmp_path: Path, name: str) -> None:
    compress, half = COMPRESSIONS[name], len(TEXTS) // 2
    path = tmp_path / "wrong.name"
    path.write_bytes(compress(jsonl(TEXTS[:half])) + compress(jsonl(TEXTS[half:])))  # two members
    assert texts(read([path])) == TEXTS
    if name == "zst":  # what tools put around frames for tables of contents
        path.write_bytes(b"\x50\x2a\x4d\x18\x02\0\0\0ab" + compress(jsonl(TEXTS)) + b"\x5e\x2a\x4d\x18\1\0\0\0a")
        assert texts(read([path])) == TEXTS
    whole = compress(jsonl(TEXTS * 50))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"wrong\.name contains damaged \w+ data: .*; download or compress it again"):
        read([path])


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\x28\xb5\x2f\xfd....")
    (tmp_path / "b.parquet").write_bytes(b"PAR1....")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match="zstd file .*a.jsonl requires the package zstandard.* pip install zstandard"):
        read([tmp_path / "a.jsonl"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="parquet file .*b.parquet requires .* pip install pyarrow"):
        read([tmp_path / "b.parquet"])


@pytest.mark.parametrize("block_bytes", [7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, indent: int | None) -> None:
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.json"
    values = [{"text": text} for text in TEXTS]
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert texts(read([path])) == TEXTS
    path.write_text("[]")
    assert read([path]) == []


def test_broken_arrays_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    lost = '[{"text": "a"}, {broken}, {"text": "this long element cannot be found any more"}]'
    unended = "its closing bracket is missing"
    for content, good, told, bytes_lost in (
        ('[{"text": "a"}, {"text": "b"}', 2, unended, 0),
        ('[{"text": "a"}, {"text": "b', 1, unended, 11),
        (lost, 1, "Expecting property name enclosed in double quotes", len(lost) - 16),
        ('[{"text": "a"}, ' + "[" * 100_000 + lost, 1, "it is nested too deeply", 100_000 + len(lost)),
    ):
        for size in (8, 1 << 20):
            monkeypatch.setattr(corpus, "BLOCK_BYTES", size)
            path.write_text(content)
            found = read([path])
            bad = [r for r in found if isinstance(r, BadRecord)]
            assert len(texts(found)) == good and [(r.line, r.reason) for r in bad] == [(good + 1, "broken array")]
            assert bad[0].detail.startswith(told) and f"the remaining {bytes_lost:,} bytes are" in bad[0].detail
            blocks = list(corpus_blocks(open_corpus([str(path)], "file"), start=(0, Cursor(good, good + 1))))
            assert [block.broken for block in blocks] == [bad[0].detail]
            assert not list(corpus_blocks(open_corpus([str(path)], "file"), start=(0, Cursor(good + 1, good + 2))))


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    monkeypatch.setattr(corpus, "PARQUET_ROWS", 3)
    rows = [{"text": text, "meta": {"title": f"t{i}"}, "n": i} for i, text in enumerate([*TEXTS, None, "last"])]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=4)
    found = read([tmp_path / "a.parquet"])
    assert texts(found) == [*TEXTS, "last"]
    assert [(r.line, r.reason) for r in found if isinstance(r, BadRecord)] == [(5, "null")]
    assert texts(read([tmp_path / "a.parquet"], ("meta.title",))) == [f"t{i}" for i in range(6)]
    with pytest.raises(ValueError, match=r"has no column body \(--json-keys\); its columns are text, meta, n"):
        read([tmp_path / "a.parquet"], ("body",))
    data = (tmp_path / "a.parquet").read_bytes()
    for name, compress in COMPRESSIONS.items():
        (tmp_path / f"b.{name}").write_bytes(compress(data))
        assert texts(read([tmp_path / f"b.{name}"])) == [*TEXTS, "last"]
    (tmp_path / "a.parquet").write_bytes(data[:-20])
    with pytest.raises(ValueError, match="damaged parquet"):
        read([tmp_path / "a.parquet"])


def test_parquet_may_hold_what_is_not_unicode(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    ends = pyarrow.py_buffer(np.array([0, 2, 5], np.int32).tobytes())
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, ends, pyarrow.py_buffer(b"a\xffabc")])
    inner = pyarrow.StructArray.from_arrays([strings], ["title"])
    columns = {"text": strings, "meta": inner, "raw": pyarrow.array([b"\xe9", "\u00e9".encode()])}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for key, bad, good in (("text", "a\ufffd", "abc"), ("meta.title", "a\ufffd", "abc"), ("raw", "\ufffd", "\u00e9")):
        (block,) = corpus_blocks(open_corpus([str(tmp_path / "a.parquet")], "file"), (key,))
        found = list(records(block, (key,)))
        assert isinstance(found[0], BadRecord) and found[0].reason == "bad UTF-8"
        assert found[0].raw == (b"\xe9" if key == "raw" else b"a\xff")
        assert texts(found) == [good] and texts(list(records(block, (key,), "replace"))) == [bad, good]


@pytest.mark.parametrize("compress", [bytes, *COMPRESSIONS.values()])
def test_a_pipe_is_told_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Any) -> None:
    array, lines = json.dumps([{"text": text} for text in TEXTS]).encode(), "\n".join(["one", "two"]).encode()
    for data, txt, expected in ((array, "file", TEXTS), (jsonl(TEXTS), "file", TEXTS), (lines, "line", ["one", "two"])):
        (tmp_path / "pipe").write_bytes(compress(data))
        with open(tmp_path / "pipe", "rb") as stream:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
            assert texts(read(["-"], txt=txt)) == expected


def test_keys_inside_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": {"b": "deep"}}\n{"a.b": "flat", "a": {"b": "hidden"}}\n{"a": 1}\n')
    found = read([path], ("a.b",))
    assert texts(found) == ["deep", "flat"] and str(found[2]).endswith(":3: missing key ('a.b')")


def test_bad_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a\xffb"}\n')
    (block,) = corpus_blocks(open_corpus([str(path)], "file"))
    assert [texts(list(records(block, ("text",), how))) for how in ("reject", "replace", "drop")] == [
        [], ["a\ufffdb"], ["ab"]
    ]  # type: ignore[arg-type]  # fmt: skip


def test_folders_patterns_and_doubles(tmp_path: Path) -> None:
    for name in ("b/x.jsonl", "a.jsonl", "b/.hidden/no.jsonl", ".no.jsonl", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(jsonl([name]) if name != "c.txt" else b"c.txt")
    assert texts(read([tmp_path])) == ["a.jsonl", "b/x.jsonl", "c.txt"]
    assert texts(read([f"{tmp_path}/**/*.jsonl"])) == ["a.jsonl", "b/x.jsonl"]
    with pytest.raises(ValueError, match=r"--input names .*a\.jsonl twice"):
        read([tmp_path, tmp_path / "b" / ".." / "a.jsonl"])
    with pytest.raises(ValueError, match="matches no file"):
        read([f"{tmp_path}/*.zip"])


LINES = st.lists(st.sampled_from(["", "x", "\u00e9" * 9, "long " * 8]), max_size=12)


@examples(20, 60, HealthCheck.function_scoped_fixture)
@given(
    contents=st.lists(LINES, min_size=1, max_size=4),
    shards=st.integers(1, 7),
    packed=st.booleans(),
    cut=st.integers(1, 90),
)
def test_shards_are_the_whole_cut_anywhere(
    tmp_path: Path, contents: list[list[str]], shards: int, packed: bool, cut: int
) -> None:
    paths: list[Path | str] = []
    for number, values in enumerate(contents):
        data = jsonl(values)
        paths.append(tmp_path / f"{number}.jsonl")
        (tmp_path / f"{number}.jsonl").write_bytes(gzip.compress(data) if packed and number % 2 else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK_BYTES", cut)
        whole = read(paths)
        files = [open_corpus([*map(str, paths)], "file", shard_id=i, num_shards=shards) for i in range(shards)]
        found = []
        for shard in files:
            for block in corpus_blocks(shard):
                before = shard[block.file_number]
                for record in records(block, ("text",)):
                    found.append((record.line + (before.lines_before if before.begin else 0), type(record)))
    assert found == [(record.line, type(record)) for record in whole]


@examples(20, 40, HealthCheck.function_scoped_fixture)
@given(
    values=LINES,
    kind=st.sampled_from(["plain", "gz", "array", "paragraph", "parquet"]),
    cut=st.integers(1, 60),
    data=st.data(),
)
def test_any_block_is_a_place_to_go_on_from(
    tmp_path: Path, values: list[str], kind: str, cut: int, data: st.DataObject
) -> None:
    path = tmp_path / {"array": "a.json", "paragraph": "a.txt"}.get(kind, "a.jsonl")
    content = {
        "array": json.dumps([{"text": value} for value in values]).encode(),
        "paragraph": b"\xef\xbb\xbf" + "\n".join(values).encode(),
        "gz": gzip.compress(jsonl(values)),
    }.get(kind, b"\xef\xbb\xbf" + jsonl(values))
    path.write_bytes(content)
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.table({"text": pyarrow.array(values, pyarrow.string())}), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK_BYTES", cut)
        patch.setattr(corpus, "PARQUET_ROWS", cut % 4 + 1)
        whole = list(corpus_blocks(open_corpus([str(path)], "paragraph")))
        stop = data.draw(st.integers(0, len(whole)))
        end = whole[stop - 1].end if stop else Cursor()
        files = open_corpus([str(path)], "paragraph")
        rest = list(corpus_blocks(files, start=(0, end)))

    def contents(blocks: list[Any]) -> list[Any]:
        return [record for block in blocks for record in records(block, ("text",))]

    assert contents(whole[:stop]) + contents(rest) == contents(whole)


def test_what_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed would be passed over, and links to folders too."""
    inner = tmp_path / "raw" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "b.txt").write_text("b")
    (inner / "a.txt").write_text("a")
    (tmp_path / "raw" / "link").symlink_to(tmp_path / "linked")
    assert texts(read([tmp_path / "raw"])) == ["a", "b"]
    listing, stat = os.scandir, os.stat

    def refuse(place: str, real: Any) -> Any:
        def call(path: Any, *rest: Any, **options: Any) -> Any:
            if str(path).endswith(place):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **options)

        return call

    for name, place, real in (("scandir", "inner", listing), ("stat", "a.txt", stat)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse(place, real))
            with pytest.raises(ValueError, match=rf"--input .*{place} cannot be read: permission denied; change"):
                read([tmp_path / "raw"])
