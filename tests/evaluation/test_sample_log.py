"""The log of samples: kept, gone on with, and refused where it belongs to something else."""

from __future__ import annotations

import json

import pytest

from megatron_fwpkm.evaluation.needle.recall import Answer
from megatron_fwpkm.evaluation.needle.samples import Cell
from megatron_fwpkm.evaluation.sample_log import SampleLog, SampleRecord

IDENTITY = {"seed": 1, "weights": "abc", "controls": ("memory-off",)}


def record(index: int) -> SampleRecord:
    """A finished sample."""
    answers = {"memory-on": Answer((1, 2), (1, 3))}
    return SampleRecord(Cell(128, 0.25, index), 17, False, 0.5, answers, {"value": "some word"})


def test_records_come_back(tmp_path):
    log = SampleLog(tmp_path / "s.jsonl", IDENTITY)
    log.append(record(0))
    log.append(record(1))
    again = SampleLog(tmp_path / "s.jsonl", IDENTITY)
    assert again.records == {Cell(128, 0.25, index): record(index) for index in (0, 1)}


def test_a_line_that_was_cut_off_is_dropped_and_written_anew(tmp_path):
    path = tmp_path / "s.jsonl"
    log = SampleLog(path, IDENTITY)
    log.append(record(0))
    log.append(record(1))
    path.write_bytes(path.read_bytes()[:-9])
    log = SampleLog(path, IDENTITY)
    assert list(log.records) == [Cell(128, 0.25, 0)]
    log.append(record(1))
    assert len(SampleLog(path, IDENTITY).records) == 2
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("content", ["", '{"seed": 1'])
def test_a_header_that_was_cut_off_begins_anew(tmp_path, content):
    path = tmp_path / "s.jsonl"
    path.write_text(content)
    SampleLog(path, IDENTITY).append(record(0))
    assert len(SampleLog(path, IDENTITY).records) == 1


def test_samples_of_another_evaluation_are_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    SampleLog(path, IDENTITY).append(record(0))
    with pytest.raises(ValueError, match=r"another evaluation \(seed, weights differ\); choose another --output"):
        SampleLog(path, IDENTITY | {"seed": 2, "weights": "def"})
    assert SampleLog(path, IDENTITY | {"seed": 2}, overwrite=True).records == {}


@pytest.mark.parametrize(
    "content",
    [
        b"length,depth\n128,0.5\n",
        b"length,depth\n128,0.5",
        b"a line of somebody else's",
        b"[1, 2]\n",
        b"17\n",
        b"\xff\xfe\n",
        b"\n",
    ],
)
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a log of samples.*; choose another --output"):
        SampleLog(path, IDENTITY)
    assert path.read_bytes() == content


def test_a_log_of_another_evaluation_is_left_as_it_is(tmp_path):
    path = tmp_path / "s.jsonl"
    SampleLog(path, IDENTITY | {"seed": 2}).append(record(0))
    content = path.read_bytes() + b"a line that was cut"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"another evaluation \(seed differ"):
        SampleLog(path, IDENTITY)
    assert path.read_bytes() == content
    path.write_bytes(content[:20])  # of its header
    with pytest.raises(ValueError, match="is not a log of samples"):
        SampleLog(path, IDENTITY)
    assert path.read_bytes() == content[:20]


@pytest.mark.parametrize("line", ["{}", "no sample", "3"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "s.jsonl"
    SampleLog(path, IDENTITY).append(record(0))
    content = path.read_text() + line + "\n{"
    path.write_text(content)
    with pytest.raises(ValueError, match="is damaged: line 3 is no sample; choose another --output, or --overwrite"):
        SampleLog(path, IDENTITY)
    assert path.read_text() == content
