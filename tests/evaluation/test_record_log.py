"""The log of samples: kept, gone on with, and refused where it belongs to something else."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from megatron_fwpkm.evaluation.record_log import RecordLog

IDENTITY = {"seed": 1, "weights": "abc", "controls": ("memory-off",)}


@dataclass(frozen=True)
class Measured:
    """A record of any evaluation."""

    key: int
    loss: float

    def to_json(self) -> dict[str, float]:
        return {"item": self.key, "loss": self.loss}

    @classmethod
    def from_json(cls, values):
        return cls(values["item"], values["loss"])


def record(index: int) -> Measured:
    """What was measured of an item."""
    return Measured(index, 0.25 + index)


def open_log(path, identity=IDENTITY, **options) -> RecordLog[Measured]:
    """The log at a path."""
    return RecordLog(path, identity, Measured.from_json, **options)


def test_records_come_back(tmp_path):
    log = open_log(tmp_path / "s.jsonl")
    log.append(record(0))
    log.append(record(1))
    again = open_log(tmp_path / "s.jsonl")
    assert again.records == {0: record(0), 1: record(1)}


def test_a_line_that_was_cut_off_is_dropped_and_written_anew(tmp_path):
    path = tmp_path / "s.jsonl"
    log = open_log(path)
    log.append(record(0))
    log.append(record(1))
    path.write_bytes(path.read_bytes()[:-9])
    log = open_log(path)
    assert list(log.records) == [0]
    log.append(record(1))
    assert len(open_log(path).records) == 2
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("content", ["", '{"seed": 1'])
def test_a_header_that_was_cut_off_begins_anew(tmp_path, content):
    path = tmp_path / "s.jsonl"
    path.write_text(content)
    open_log(path).append(record(0))
    assert len(open_log(path).records) == 1


def test_samples_of_another_evaluation_are_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    open_log(path).append(record(0))
    with pytest.raises(ValueError, match=r"evaluation \(different: seed, weights\); choose another --output"):
        open_log(path, IDENTITY | {"seed": 2, "weights": "def"})
    assert open_log(path, IDENTITY | {"seed": 2}, overwrite=True).records == {}


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
        open_log(path)
    assert path.read_bytes() == content


def test_a_log_of_another_evaluation_is_left_as_it_is(tmp_path):
    path = tmp_path / "s.jsonl"
    open_log(path, IDENTITY | {"seed": 2}).append(record(0))
    content = path.read_bytes() + b"a line that was cut"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a different evaluation \(different: seed\);"):
        open_log(path)
    assert path.read_bytes() == content
    path.write_bytes(content[:20])  # of its header
    with pytest.raises(ValueError, match="is not a log of samples"):
        open_log(path)
    assert path.read_bytes() == content[:20]


@pytest.mark.parametrize("line", ["{}", "no sample", "3"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "s.jsonl"
    open_log(path).append(record(0))
    content = path.read_text() + line + "\n{"
    path.write_text(content)
    with pytest.raises(ValueError, match="is damaged: line 3 is not a sample; choose another --output, or start over"):
        open_log(path)
    assert path.read_text() == content
