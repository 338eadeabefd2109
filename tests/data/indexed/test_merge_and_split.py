"""Merging, splitting and inspecting: no document lost, no damage missed, arithmetic right at any size."""

from __future__ import annotations

import io
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.indexed import indexed_format
from megatron_fwpkm.data.indexed import merge_and_split as dataset_tools
from megatron_fwpkm.data.indexed.indexed_format import byte_offsets, read_dataset_info, write_index
from megatron_fwpkm.data.indexed.inspection import inspect_dataset, sample_documents, write_histogram
from megatron_fwpkm.data.indexed.merge_and_split import merge, split
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer

from ..conftest import WriteDataset

DOCUMENTS = [[5, 6, 7], [8], [5, 6, 7], [9, 10], [11] * 40, [8], [12, 13], [14], [15, 16], [17]]


@pytest.fixture
def numbers() -> Tokenizer:
    return build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=100))


def documents_of(prefix: str | Path) -> list[list[int]]:
    opened = IndexedDataset(str(prefix))
    return [opened[index].tolist() for index in range(len(opened))]


@pytest.mark.parametrize("copy_bytes", [1, 8, 1 << 20])
def test_merging_keeps_order_and_bytes(
    tmp_path: Path, write_dataset: WriteDataset, numbers: Tokenizer, monkeypatch: pytest.MonkeyPatch, copy_bytes: int
) -> None:
    monkeypatch.setattr(dataset_tools, "COPY_BYTES", copy_bytes)
    whole = write_dataset("whole", DOCUMENTS, numbers)
    write_dataset("part-1", DOCUMENTS[:4], numbers)
    write_dataset("part-2", DOCUMENTS[4:], numbers)
    report = merge([f"{tmp_path}/part-*"], str(tmp_path / "merged"))
    for suffix in (".bin", ".idx"):
        assert Path(f"{tmp_path}/merged{suffix}").read_bytes() == Path(whole + suffix).read_bytes()
    assert report.outputs == ((f"{tmp_path}/merged", 10, sum(map(len, DOCUMENTS))),)
    assert json.loads((tmp_path / "merged.json").read_text())["tokenizer"]["identity"] == numbers.identity
    report = merge([whole], str(tmp_path / "unique"), deduplicate=True)
    assert report.duplicates == 2
    assert documents_of(tmp_path / "unique") == [DOCUMENTS[i] for i in (0, 1, 3, 4, 6, 7, 8, 9)]


def test_merging_refuses_what_does_not_belong_together(
    tmp_path: Path, write_dataset: WriteDataset, numbers: Tokenizer
) -> None:
    one = write_dataset("one", [[1]], numbers)
    other = write_dataset("other", [[1]], build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=99)))
    wide = write_dataset("wide", [[1]], build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=70000)))
    for inputs, output, message in (
        ([one, other], "out", r"made with different tokenizers \(NullTokenizer [0-9a-f]{12} of .* ids and .* ids\)"),
        ([one, wide], "out", "wide has dtype int32 and .*one has uint16, so their tokenizers"),
        ([one, one], "out", "names .*one twice"),
        ([one], "one", "would overwrite the input"),
        ([f"{tmp_path}/none*"], "out", "matches no dataset"),
        ([], "out", "names no dataset"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(inputs, str(tmp_path / output))
    assert not list(tmp_path.glob("out*")) and documents_of(one) == [[1]]
    Path(one + ".json").unlink()
    merge([one], str(tmp_path / "plain"))
    assert not (tmp_path / "plain.json").exists() and documents_of(tmp_path / "plain") == [[1]]


def test_splitting(tmp_path: Path, write_dataset: WriteDataset, numbers: Tokenizer) -> None:
    whole = write_dataset("whole", [[i] for i in range(100)], numbers)
    report = split(whole, str(tmp_path / "s"), (80, 15, 5), seed=3)
    parts = [[document[0] for document in documents_of(prefix)] for prefix, _, _ in report.outputs]
    assert [len(part) for part in parts] == [80, 15, 5] and sorted(sum(parts, [])) == list(range(100))
    assert all(part == sorted(part) for part in parts) and parts[1] != list(range(80, 95))
    first = (tmp_path / "s_valid.bin").read_bytes()
    split(whole, str(tmp_path / "s"), (80, 15, 5), seed=3, overwrite=True)
    assert (tmp_path / "s_valid.bin").read_bytes() == first
    split(whole, str(tmp_path / "s"), (80, 15, 5), seed=4, overwrite=True)
    assert (tmp_path / "s_valid.bin").read_bytes() != first
    split(whole, str(tmp_path / "two"), (9, 1, 0))
    assert not (tmp_path / "two_test.idx").exists()
    doubled = write_dataset("doubled", [[1, 2]] * 50 + [[3]] * 50, numbers)
    report = split(doubled, str(tmp_path / "d"), (1, 0, 0), deduplicate=True)
    assert report.duplicates == 98 and documents_of(tmp_path / "d_train") == [[1, 2], [3]]
    with pytest.raises(ValueError, match="--shares leaves no documents for test \\(the input has 100\\)"):
        split(whole, str(tmp_path / "e"), (1, 1, 0.001))
    with pytest.raises(ValueError, match="--shares 1,2 must be three shares"):
        split(whole, str(tmp_path / "e"), (1, 2))
    assert not list(tmp_path.glob("e_*"))


def test_offsets_beyond_all_small_integers() -> None:
    # 2^40 tokens and more: each length is small, sums are not
    lengths = np.full(1100, 2**31 - 1, np.int32)
    stream = io.BytesIO()
    write_index(stream, np.dtype(np.int32), lengths)
    data = stream.getvalue()
    pointers = np.frombuffer(data, np.int64, 1100, 34 + 4 * 1100)
    assert pointers.tolist() == [i * (2**31 - 1) * 4 for i in range(1100)] and int(lengths.sum(dtype=np.int64)) > 2**40
    offsets, end = byte_offsets(lengths[:3], 2, 2**45 + 1)
    assert offsets.tolist() == [2**45 + 1 + i * (2**32 - 2) for i in range(3)] and end == 2**45 + 1 + 3 * (2**32 - 2)


class _ManyLengths:
    """More lengths than 31 bits count, without their memory; blocks far from the end are not looked at."""

    def __len__(self) -> int:
        return 2**31 + 5

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.ones(len(range(*part.indices(len(self)))), np.int32)


class _Tail:
    """A file of which the length and the last bytes are kept."""

    def __init__(self) -> None:
        self.size, self.head, self.tail = 0, b"", b""

    def write(self, data: bytes) -> None:
        self.head = self.head or data
        self.size += len(data)
        self.tail = data[-64:] if len(data) >= 64 else (self.tail + data)[-64:]


@pytest.mark.slow
def test_more_documents_than_31_bits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed_format, "_BLOCK", 1 << 24)
    stream = _Tail()
    write_index(stream, np.dtype(np.uint16), _ManyLengths())  # type: ignore[arg-type]
    documents = 2**31 + 5
    assert struct.unpack("<9sQBQQ", stream.head)[3:] == (documents, documents + 1)
    assert stream.size == 34 + 20 * documents + 8
    assert np.frombuffer(stream.tail, np.int64)[-2:].tolist() == [documents - 1, documents]


def test_inspection_counts_and_decodes(tmp_path: Path, write_dataset: WriteDataset, numbers: Tokenizer) -> None:
    prefix = write_dataset("d", DOCUMENTS, numbers)
    found = inspect_dataset(prefix, check_tokens=True)
    assert not found.problems and (found.info.documents, found.tokens) == (10, 56)
    assert found.histogram == [(1, 2, 4), (2, 4, 5), (4, 8, 0), (8, 16, 0), (16, 32, 0), (32, 64, 1)]
    assert found.histogram_text().count("\n") == 6 and ("tokens", "56 (uint16)") in found.rows()
    assert sample_documents(found.info, numbers, 99) == [(i, " ".join(map(str, d))) for i, d in enumerate(DOCUMENTS)]
    write_histogram(found, tmp_path / "h.png")
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="was made with a different tokenizer"):
        sample_documents(found.info, build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=7)), 1)


def patch(path: str, at: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(at)
        stream.write(data)


def cut_marks(path: str, documents: int) -> None:
    """The index of a tool whose documents have several sequences."""
    patch(path, 26, struct.pack("<Q", documents + 1))
    os.truncate(path, 34 + 12 * 10 + 8 * (documents + 1))


def rewrite(path: str, **changes: object) -> None:
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | changes))


DAMAGE: dict[str, tuple[Callable[[str], None], str]] = {
    "short bin": (lambda prefix: os.truncate(prefix + ".bin", 100), "has 100 bytes, but its index expects 112"),
    "short idx": (lambda prefix: os.truncate(prefix + ".idx", 100), "is truncated"),
    "dtype": (lambda prefix: patch(prefix + ".idx", 17, b"\x03"), "the .idx has dtype int16, the .json uint16"),
    "pointer": (lambda prefix: patch(prefix + ".idx", 34 + 40 + 16, b"\x09"), "document 2 begins at byte 9"),
    "mark": (lambda prefix: patch(prefix + ".idx", 34 + 120 + 8, b"\x07"), "document marks are not consecutive"),
    "long idx": (lambda prefix: os.truncate(prefix + ".idx", 300), "it has 300 bytes, but 10 sequences .* need 242"),
    "sentences": (lambda prefix: cut_marks(prefix + ".idx", 4), "has 10 sequences in 4 documents"),
    "count": (lambda prefix: rewrite(prefix + ".json", tokens=7), "the .idx has tokens 56, the .json 7"),
    "type": (lambda prefix: rewrite(prefix + ".json", tokenizer={"identity": "x"}), "is not a dataset description"),
    "length": (lambda prefix: patch(prefix + ".idx", 34, b"\x00"), "document 0 has 0 tokens"),
    "token": (lambda prefix: patch(prefix + ".bin", 0, b"\xff\xff"), "between 0 and 100, but range from 5 to 65535"),
    "other token": (lambda prefix: patch(prefix + ".bin", 0, b"\x06\x00"), "its SHA-256 differs"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(write_dataset: WriteDataset, numbers: Tokenizer, name: str) -> None:
    prefix = write_dataset("d", DOCUMENTS, numbers)
    damage, message = DAMAGE[name]
    damage(prefix)
    try:
        told = "; ".join(inspect_dataset(prefix, check_tokens=True).problems)
    except ValueError as error:
        told = str(error)
    assert re.search(message, told)
    if name not in ("dtype", "token", "other token"):  # what copying documents goes by
        with pytest.raises(ValueError, match=message):
            merge([prefix], prefix + "-copy")


def test_options_of_inputs_that_differ_are_not_told_of_the_merged(
    tmp_path: Path, write_dataset: WriteDataset, numbers: Tokenizer
) -> None:
    inputs = [write_dataset("one", [[1, 100]], numbers), write_dataset("other", [[1]], numbers)]
    for prefix, ends in zip(inputs, (True, False), strict=True):
        rewrite(prefix + ".json", options={"append_eod": ends, "on_error": "skip"})
    merge(inputs, str(tmp_path / "merged"))
    assert json.loads((tmp_path / "merged.json").read_text())["options"] == {"on_error": "skip"}
    assert inspect_dataset(str(tmp_path / "merged"), check_tokens=True).problems == []


@pytest.mark.parametrize(
    ("ends", "eods"), [((True, True), {"eods": 2}), ((False, False), {"eods": 0}), ((True, False), {})]
)
def test_end_of_document_tokens_of_the_merged_are_known_or_left_open(
    tmp_path: Path, write_dataset: WriteDataset, numbers: Tokenizer, ends: tuple[bool, bool], eods: dict[str, int]
) -> None:
    inputs = [write_dataset("one", [[1, 100]], numbers), write_dataset("other", [[2, 100]], numbers)]
    for prefix, end in zip(inputs, ends, strict=True):
        rewrite(prefix + ".json", options={"append_eod": end}, eods=int(end))
    merge(inputs, str(tmp_path / "merged"))
    sidecar = json.loads((tmp_path / "merged.json").read_text())
    assert {name: sidecar[name] for name in sidecar if name == "eods"} == eods


def test_shards_of_other_options_are_no_shards(tmp_path: Path, write_dataset: WriteDataset, numbers: Tokenizer) -> None:
    inputs = [write_dataset("one", [[1]], numbers), write_dataset("other", [[1]], numbers)]
    for number, (cut, on_error) in enumerate((("line", "fail"), ("file", "skip"))):
        options = {"txt_documents": cut, "on_error": on_error}
        rewrite(inputs[number] + ".json", options=options, shard=[number, 2])
    with pytest.raises(ValueError, match="not shards of the same run: txt-documents is file in one and line in"):
        merge(inputs, str(tmp_path / "merged"))
    rewrite(inputs[1] + ".json", options={"txt_documents": "line", "on_error": "skip"})
    assert merge(inputs, str(tmp_path / "merged")).outputs[0][1] == 2  # what was left out and kept does not differ


def test_sparse_files_of_terabytes_open(tmp_path: Path) -> None:
    lengths = np.full(600, 2**31 - 1, np.int32)
    with open(tmp_path / "t.idx", "wb") as stream:
        write_index(stream, np.dtype(np.uint16), lengths)
    with open(tmp_path / "t.bin", "wb") as stream:
        try:
            stream.truncate(2 * int(lengths.sum(dtype=np.int64)))
        except OSError:
            pytest.skip("this file system has no sparse files of 2.5 TB")
    assert inspect_dataset(str(tmp_path / "t")).problems == []
    assert read_dataset_info(tmp_path / "t").tokens_between(0, 600) == 600 * (2**31 - 1) > 2**40
