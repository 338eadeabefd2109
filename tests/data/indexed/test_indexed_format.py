"""The .bin/.idx pair: Megatron's bytes, published whole, damage noticed."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_fwpkm.data.indexed.indexed_format import IndexedWriter, read_dataset_info, token_dtype
from megatron_fwpkm.data.preprocess.journal import BadRecordsFile, Journal

SIDECAR = {"tokenizer": {"type": "NullTokenizer", "vocab_size": 100, "identity": "0"}}


def write(prefix: Path, documents: list[list[int]], dtype: str = "uint16", *, overwrite: bool = False) -> None:
    with IndexedWriter(prefix, np.dtype(dtype), overwrite=overwrite) as writer:
        for document in documents:
            writer.append(np.array(document, dtype).tobytes(), array("i", [len(document)]))
        writer.publish(SIDECAR)


def documents_of(prefix: Path) -> list[list[int]]:
    """As Megatron reads them. The dataset is held while its arrays are read: it unmaps them when it goes."""
    opened = IndexedDataset(str(prefix))
    return [opened[index].tolist() for index in range(len(opened))]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.lists(st.integers(0, 65499), min_size=1, max_size=9), min_size=1, max_size=9),
    dtype=st.sampled_from(["uint16", "int32"]),
)
def test_bytes_are_megatrons(tmp_path: Path, documents: list[list[int]], dtype: str) -> None:
    write(tmp_path / "ours", documents, dtype, overwrite=True)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.dtype(dtype).type)
    for document in documents:
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert documents_of(tmp_path / "ours") == documents
    info = read_dataset_info(tmp_path / "ours")
    assert (info.documents, info.dtype, list(info.lengths)) == (len(documents), dtype, [len(d) for d in documents])


def test_an_index_of_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_fwpkm.data.indexed.indexed_format._BLOCK", 4)
    documents = [[i] * (i % 5 + 1) for i in range(13)]
    write(tmp_path / "a", documents)
    assert documents_of(tmp_path / "a") == documents
    assert (tmp_path / "a.idx").read_bytes()[-8 * 14 :] == np.arange(14, dtype=np.int64).tobytes()


@pytest.mark.parametrize("vocab_size", [1, 65499, 65500, 200_000])
def test_the_dtype_is_megatrons_choice(vocab_size: int) -> None:
    assert token_dtype(vocab_size) == DType.optimal_dtype(vocab_size)


def test_existing_datasets_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2]])
    with pytest.raises(ValueError, match=r"a\.bin already exists; give another --output-prefix, or use --overwrite"):
        write(tmp_path / "a", [[3]])
    assert (tmp_path / "a.bin").read_bytes() == np.array([1, 2], np.uint16).tobytes()
    write(tmp_path / "a", [[3]], overwrite=True)
    assert documents_of(tmp_path / "a") == [[3]]


def test_a_failed_run_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2]])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "a", np.dtype("uint16"), overwrite=True) as writer:
        writer.append(b"\x01\x00", array("i", [1]))
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.bin.partial").write_bytes(b"left over by kill -9")
    write(tmp_path / "a", [[7]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.json"]
    assert documents_of(tmp_path / "a") == [[7]]


def test_two_writers_exclude_each_other(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "a", np.dtype("uint16")):
        with pytest.raises(ValueError, match="another process is writing"):
            IndexedWriter(tmp_path / "a", np.dtype("uint16"))


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to .*file \(--output-prefix\)"):
        IndexedWriter(tmp_path / "file" / "a", np.dtype("uint16"))


def test_a_full_disk_is_told_of_bad_records_and_the_journal_too(tmp_path: Path) -> None:
    told = "No space left on device; free space there, or give an --output-prefix on another disk"
    opened = BadRecordsFile(tmp_path / "q", overwrite=False, resume=False)
    with pytest.raises(OSError, match=told) as caught, opened as bad:
        bad._stream.close()
        bad._stream = open("/dev/full", "wb")
        bad.add({"record": "x"})  # held back, so that closing tries again
        bad.checkpoint()
    assert caught.value.filename == str(tmp_path / "q.partial") and not list(tmp_path.iterdir())
    (tmp_path / "j.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match=told):
        Journal(tmp_path / "j", "").write({})


@pytest.mark.parametrize("name", ["_bin", "_lengths"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """/dev/full refuses every write as a full disk does."""
    told = "No space left on device; free space there, or give an --output-prefix on another disk"
    with pytest.raises(OSError, match=told), IndexedWriter(tmp_path / "a", np.dtype("uint16")) as writer:
        getattr(writer, name).close()
        setattr(writer, name, open("/dev/full", "wb"))
        writer.append(b"\x01\x00" * 9000, array("i", [1] * 9000))
        writer.checkpoint()
    assert list(tmp_path.iterdir()) == []


def damage_bin(prefix: Path) -> None:
    data = prefix.with_suffix(".bin").read_bytes()
    prefix.with_suffix(".bin").write_bytes(data[:-2])


def damage_idx(prefix: Path) -> None:
    data = prefix.with_suffix(".idx").read_bytes()
    prefix.with_suffix(".idx").write_bytes(data[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_bin, r"\.bin has 6 bytes, but its index expects 8"),
        (damage_idx, r"\.idx is truncated"),
        (lambda prefix: prefix.with_suffix(".idx").write_bytes(b"x" * 99), "is not the index of a Megatron dataset"),
        (lambda prefix: prefix.with_suffix(".idx").write_bytes(b""), "is not the index of a Megatron dataset"),
        (
            lambda prefix: prefix.with_suffix(".idx").write_bytes(b"MMIDIDX\0\0" + b"\x02" * 40),
            "only version 1 and codes",
        ),
        (lambda prefix: prefix.with_suffix(".json").write_text("[]"), "is not a dataset description"),
        (lambda prefix: prefix.with_suffix(".json").write_text("{"), "is not a dataset description"),
        (
            lambda prefix: prefix.with_suffix(".json").write_text(json.dumps(SIDECAR | {"format": 9})),
            "has format 9; only format 1",
        ),
        (lambda prefix: prefix.with_suffix(".bin").unlink(), r"\.bin does not exist; a dataset needs both"),
        (lambda prefix: prefix.with_suffix(".idx").unlink(), r"\.idx does not exist; a dataset needs both"),
    ],
)
def test_damage_is_noticed(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    prefix = tmp_path / "a"
    write(prefix, [[1, 2], [3, 4]])
    damage(prefix)
    with pytest.raises(ValueError, match=message):
        read_dataset_info(prefix)


def test_the_fingerprint_follows_the_tokens(tmp_path: Path) -> None:
    prints = []
    for name, documents in (("a", [[1, 2]]), ("b", [[1, 2]]), ("c", [[1, 3]])):
        write(tmp_path / name, documents)
        prints.append(read_dataset_info(tmp_path / name).fingerprint)
    assert prints[0] == prints[1] != prints[2]
