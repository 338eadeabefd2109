"""From samples to tables: reading speed, order of lengths."""

from __future__ import annotations

import json
import re

import pytest

from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.needle.needle_record import NeedleRecord
from megatron_fwpkm.evaluation.needle.results import reading_speed, text_table
from megatron_fwpkm.evaluation.needle.run import evaluate
from megatron_fwpkm.evaluation.needle.samples import Cell
from tests.evaluation.oracle import load_oracle


def read(length: int, seconds: float, tokens: int | None = None) -> NeedleRecord:
    """A sample that took this long to read."""
    return NeedleRecord(Cell(length, 0.5, 0), 0, False, 0, 0, tokens or length, seconds, (), {})


def test_reading_speed_is_tokens_by_seconds():
    speeds = reading_speed([read(512, 0.25), read(128, 0.5), read(128, 0.3), read(512, 0.75)])
    assert list(speeds) == [128, 512]
    assert speeds == {128: pytest.approx(2 * 128 / 0.8), 512: pytest.approx(2 * 512 / 1.0)}


def test_the_speed_counts_tokens_where_lengths_are_words():
    assert reading_speed([read(100, 0.5, 140), read(100, 0.5, 160)]) == {100: pytest.approx(300)}


def test_a_read_too_short_for_the_clock_has_a_speed():
    assert reading_speed([read(128, 0.0)])[128] == pytest.approx(128e9)


def test_the_speed_told_is_that_of_the_samples(make_settings, tmp_path):
    evaluate(make_settings(controls=()), RunOptions(tmp_path), load_oracle)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()[1:]]
    told = json.loads((tmp_path / "run.json").read_text())["tokens_per_second"]
    for length in (128, 512):
        seconds = [sample["read_seconds"] for sample in samples if sample["length"] == length]
        assert len(seconds) == 5
        assert told[str(length)] == pytest.approx(5 * length / sum(seconds), abs=0.06)


def test_lengths_stand_in_order_whatever_was_asked(make_settings, tmp_path):
    results = evaluate(make_settings(lengths=(512, 128, 256), controls=()), RunOptions(tmp_path), load_oracle)
    assert [line.split()[0] for line in text_table(results).splitlines()] == ["tokens", "128", "256", "512"]
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"<td>(\d+) tokens</td>", page) == ["128", "256", "512"]
    rows = [row.length for row in results.rows]
    assert rows == sorted(rows) and list(results.tokens_per_second) == [128, 256, 512]
