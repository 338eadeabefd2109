"""An evaluation in twenty lines on the general parts: settings, a function from item to record, a section."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from megatron_fwpkm.evaluation.item_runner import check_run, measure_items
from megatron_fwpkm.evaluation.record_log import RecordLog
from megatron_fwpkm.evaluation.report_page import ReportPart, Section, render_page
from megatron_fwpkm.evaluation.result_files import csv_text, json_text


@dataclass(frozen=True)
class LengthSettings:
    """How long words are."""

    scale: int = 1


@dataclass(frozen=True)
class LengthRecord:
    """One word's length."""

    key: str
    length: int

    def to_json(self):
        return asdict(self)


def make_measure(settings: LengthSettings):
    """The function from item to record."""
    return lambda word: LengthRecord(word, settings.scale * len(word))


def evaluate(settings: LengthSettings, words: list[str], folder: Path, *, workers: int = 1, measure=None) -> str:
    """The page, after the results are written."""
    log = RecordLog(folder / "samples.jsonl", asdict(settings), lambda values: LengthRecord(**values))
    records = measure_items(
        words, log, measure or make_measure(settings), lambda done: f"{len(done)} words", workers=workers,
        make_worker=make_measure, arguments=(settings,),
    )  # fmt: skip
    rows = [record.to_json() for record in records]
    (folder / "results.csv").write_text(csv_text(rows))
    (folder / "results.json").write_text(json_text({"results": rows}))
    section = Section("Words & lengths", ", ".join(str(record.length) for record in records))
    return render_page(
        ReportPart("words", "T", "A < B", "Lead", (section,), None, asdict(settings), {"date": "today"})
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_records_come_in_the_order_of_items(tmp_path, capsys, workers):
    page = evaluate(LengthSettings(2), ["abc", "a", "ab"], tmp_path, workers=workers)
    assert (tmp_path / "results.csv").read_text() == "key,length\nabc,6\na,2\nab,4\n"
    assert json.loads((tmp_path / "results.json").read_text())["results"][1] == {"key": "a", "length": 2}
    assert '<h2 id="words-1-words-lengths">Words &amp; lengths</h2>\n6, 2, 4\n' in page and "<h1>A &lt; B</h1>" in page
    assert "<dt>scale</dt><dd>2</dd>" in page and "<dt>date</dt><dd>today</dd>" in page and "$" not in page
    assert "3 of 3 samples, 3 words" in capsys.readouterr().err


def test_what_is_in_the_log_is_not_measured_again(tmp_path, capsys):
    evaluate(LengthSettings(), ["abc", "a"], tmp_path)
    asked: list[str] = []
    measure = make_measure(LengthSettings())
    evaluate(LengthSettings(), ["abc", "abcd", "a"], tmp_path, measure=lambda word: asked.append(word) or measure(word))
    assert asked == ["abcd"]
    assert "continuing: 2 of 3 samples are already finished" in capsys.readouterr().err
    assert (tmp_path / "results.csv").read_text() == "key,length\nabc,3\nabcd,4\na,1\n"
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert lines[0] == {"scale": 1} and [line["key"] for line in lines[1:]] == ["abc", "abcd", "a"]


def test_what_was_measured_before_a_failure_is_kept(tmp_path):
    def breaks(word):
        if word == "ab":
            raise ValueError("no ab")
        return make_measure(LengthSettings())(word)

    with pytest.raises(ValueError, match="no ab"):
        evaluate(LengthSettings(), ["abc", "a", "ab"], tmp_path, measure=breaks)
    assert (tmp_path / "samples.jsonl").read_text().count("\n") == 3


def test_a_run_without_its_folders_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--model .*no is not a folder; give an export, a checkpoint or"):
        check_run(str(tmp_path / "no"), tmp_path, 1)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--output .* cannot be created: .*file is a file"):
        check_run(str(tmp_path), tmp_path / "file" / "out", 1)
    with pytest.raises(ValueError, match="--workers 0 must be at least 1"):
        check_run(str(tmp_path), tmp_path, 0)
