"""Files to records: cut anywhere, compressed or not, nothing lost and every bad record named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_fwpkm.data.corpus import input_files as corpus
from megatron_fwpkm.data.corpus.input_files import corpus_blocks, open_corpus
from megatron_fwpkm.data.corpus.records import BadRecord, Record, TxtDocuments, records


def read(
    paths: list[Path], txt_documents: TxtDocuments = "file", keys: tuple[str, ...] = ("text",)
) -> list[Record | BadRecord]:
    files = open_corpus([str(path) for path in paths], txt_documents)
    return [record for block in corpus_blocks(files) for record in records(block, keys)]


def texts(found: list[Record | BadRecord]) -> list[str]:
    return [record.texts[0] for record in found if isinstance(record, Record)]


def problems(found: list[Record | BadRecord]) -> list[tuple[int, str]]:
    return [(record.line, record.reason) for record in found if isinstance(record, BadRecord)]


def test_every_kind_of_bad_json_line_is_named(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}', b"{broken", b"", b'{"other": 1}', b'{"text": null}', b'{"text": 5}', b'{"text": " \\n"}',
        b'{"text": "\xff"}', b'["text"]', b"   ", b'{"text": "last"}\r', b"[" * 200_000,
        b'{"text": 1' + b"0" * 5000 + b"}",
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = read([path])
    assert texts(found) == ["good", "last"]
    assert problems(found) == [
        (2, "bad JSON"), (3, "blank line"), (4, "missing key"), (5, "null"), (6, "not a string"), (7, "empty document"),
        (8, "bad UTF-8"), (9, "not an object"), (10, "blank line"), (12, "bad JSON"), (13, "bad JSON"),
    ]  # fmt: skip
    bad = [record for record in found if isinstance(record, BadRecord)]
    assert str(bad[6]) == f"{path}:8: bad UTF-8 (byte 0xff at offset 10)"
    assert bad[0].raw == b"{broken"
    assert str(bad[2]) == f"{path}:4: missing key ('text')"


def test_a_record_must_have_every_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "1", "b": "2"}\n{"a": "3"}\n')
    found = read([path], keys=("a", "b"))
    assert [record.texts for record in found if isinstance(record, Record)] == [("1", "2")]
    assert problems(found) == [(2, "missing key")]


def test_documents_of_text_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\n\none\n two \n\t\n\nthree\r\n\u2028four\n".encode())
    assert texts(read([path], "file")) == ["\n\none\n two \n\t\n\nthree\r\n\u2028four\n"]
    found = read([path], "paragraph")
    assert texts(found) == ["one\n two ", "three\n\u2028four"] and problems(found) == []
    assert [record.line for record in found] == [3, 7]
    found = read([path], "line")
    assert texts(found) == ["one", " two ", "three", "\u2028four"]
    assert problems(found) == [(1, "blank line"), (2, "blank line"), (5, "blank line"), (6, "blank line")]


def test_an_empty_file_is_an_empty_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch()
    assert problems(read([path])) == [(1, "empty document")]
    assert read([path], "paragraph") == read([path], "line") == []


def test_kind_and_compression_are_told_by_content(tmp_path: Path) -> None:
    line = '{"text": "x"}\n'
    cases = {
        "a.jsonl": (line.encode(), "x"),
        "b.jsonl": (gzip.compress(line.encode()), "x"),
        "c.gz": (gzip.compress(b"\xef\xbb\xbf  " + line.encode()), "x"),
        "d": (line.encode(), "x"),
        "e.txt": (line.encode(), line),
        "f.txt.gz": (gzip.compress(b"two") + gzip.compress(b" members"), "two members"),
        "g.JSONL.gz": (line.encode(), "x"),
        "h": (b"plain", "plain"),
        "i.txt": (b"\xef\xbb\xbfmarked", "marked"),
    }
    for name, (content, expected) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert texts(read([tmp_path / name])) == [expected], name


def test_unreadable_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--input names no file"):
        open_corpus([], "file")
    with pytest.raises(ValueError, match="--input .*absent.jsonl does not exist"):
        open_corpus([str(tmp_path / "absent.jsonl")], "file")
    with pytest.raises(ValueError, match="is a folder that contains no files"):
        open_corpus([str(tmp_path)], "file")
    whole = gzip.compress(json.dumps({"text": "x" * 1000}).encode())
    for number, content in enumerate((whole[:-12], whole[:-8] + b"\0" * 8, whole + b"trailing")):
        path = tmp_path / f"{number}.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged gzip data: .*; download or compress it again, or leave it out"):
            read([path])


# Characters at which naive readers stumble: line separators, byte-order mark, control characters, four-byte characters.
TEXT = st.text(st.sampled_from('ab \t\u2028\x85\x00\x0b\ufeff\u00e9\U0001f600</s>{}"\\'), min_size=1, max_size=12)
KEEP = dict(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(**KEEP)  # type: ignore[arg-type]
@given(
    lines=st.lists(st.one_of(TEXT, st.sampled_from([b"", b"{", b'{"text": null}', b"\xff"])), max_size=12),
    block_bytes=st.integers(1, 60),
    compressed=st.booleans(),
    final_newline=st.booleans(),
    escape=st.booleans(),
)
def test_jsonl_survives_any_cut(
    tmp_path: Path, lines: list[str | bytes], block_bytes: int, compressed: bool, final_newline: bool, escape: bool
) -> None:
    raw = [
        line if isinstance(line, bytes) else json.dumps({"text": line}, ensure_ascii=escape).encode() for line in lines
    ]
    data = b"\n".join(raw) + b"\n" * final_newline
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(data) if compressed else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK_BYTES", block_bytes)
        found = read([path])
    assert texts(found) == [line for line in lines if isinstance(line, str) and line.strip() and "\0" not in line]
    numbers = [record.line for record in found]
    assert numbers == list(range(1, len(numbers) + 1)), "every line gives a record or a problem, in order"


@settings(**KEEP)  # type: ignore[arg-type]
@given(
    lines=st.lists(st.sampled_from(["", " ", "a", "b c", "\u00e9\u2028"]), max_size=14), block_bytes=st.integers(1, 30)
)
def test_paragraphs_survive_any_cut(tmp_path: Path, lines: list[str], block_bytes: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK_BYTES", block_bytes)
        found = read([path], "paragraph")
    expected: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            expected[-1].append(line)
        elif expected[-1]:
            expected.append([])
    assert texts(found) == ["\n".join(held) for held in expected if held]
