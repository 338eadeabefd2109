"""Lines to records: what orjson may read changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fwpkm.data.corpus import records
from megatron_fwpkm.data.corpus.records import Block, Record
from tests.quick_cases import examples

pytest.importorskip("orjson")

JSON_TEXT = st.one_of(st.text(max_size=8), st.sampled_from(["", " ", "\ud800", "\U0001f600", "a\u2028\x00"]))
JSON_VALUE = st.recursive(
    st.one_of(JSON_TEXT, st.none(), st.booleans(), st.floats(), st.integers(), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(JSON_TEXT, inner, max_size=3)),
    max_leaves=6,
)
JSON_RECORD = st.dictionaries(st.sampled_from(["text", "a.b", "a", "c"]), st.one_of(JSON_TEXT, JSON_VALUE), max_size=4)


@examples(100, 400)
@given(
    st.one_of(JSON_RECORD, JSON_VALUE).flatmap(lambda value: st.sampled_from([
        json.dumps(value), json.dumps(value, ensure_ascii=False), f" {json.dumps(value)}\t", json.dumps(value)[:-1],
        json.dumps(value) + "x", json.dumps(value)[:-1] + ', "text": "last"}', f"\ufeff{json.dumps(value)}",
        json.dumps(value).replace('"text"', '"\\u0074ext"'), json.dumps(value).replace("1", "01"),
    ])),
    st.sampled_from([("text",), ("a.b",), ("text", "a"), ("text|a",), ("a.b|c|text", "a|text")]),
    st.sampled_from(["reject", "replace", "drop"]),
    st.integers(0, 60),
)  # fmt: skip
def test_orjson_changes_no_record(line: str, keys: tuple[str, ...], bad_bytes: Any, at: int) -> None:
    """Errors, duplicate keys, NaN, surrogates and large numbers are those of json."""
    whole = line.encode("utf-8", "surrogatepass")
    for raw in (whole, whole[:at] + b"\xff\xc3" + whole[at:], whole[:at] + b"\x01" + whole[at:]):
        if b"\n" not in raw:
            assert_the_same_records(raw, keys, bad_bytes)


@pytest.mark.parametrize("depth", [300, 600, 980, 1010, 1030, 3000])
def test_orjson_changes_no_record_of_many_levels(depth: int) -> None:
    for line in (
        b'{"text": "good", "b": ' + b"[" * depth + b"]" * depth + b"}",
        b'{"text": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b', "text": "good"}',
    ):
        assert_the_same_records(line, ("text",), "reject")


def assert_the_same_records(line: bytes, keys: tuple[str, ...], bad_bytes: Any) -> None:
    block = Block("a", "jsonl", 1, line, 0)
    found = list(records.records(block, keys, bad_bytes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "orjson", None)
        plain = list(records.records(block, keys, bad_bytes))
    assert [replace(one, is_unicode=False) if isinstance(one, Record) else one for one in found] == plain
    for record in found:
        if isinstance(record, Record) and record.is_unicode:
            assert "".join(record.texts).encode("utf-8")
