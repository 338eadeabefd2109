"""A whole evaluation: numbers, going on, processes, outputs."""

from __future__ import annotations

import csv
import json
import math
import re
import struct
from dataclasses import replace

import pytest
from matplotlib.axes import Axes

from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.needle import run as needle_module
from megatron_fwpkm.evaluation.needle.heatmap import draw_heatmap
from megatron_fwpkm.evaluation.needle.results import text_table
from megatron_fwpkm.evaluation.needle.run import evaluate
from megatron_fwpkm.evaluation.needle.settings import MEMORY_ON
from tests.evaluation.oracle import fail_to_load, load_oracle

OUTPUTS = [
    "curve.png", "heatmap.png", "report.html", "report_part.json", "results.csv", "results.json", "run.json",
    "samples.jsonl",
]  # fmt: skip


@pytest.fixture(scope="module")
def oracle_results(make_settings, tmp_path_factory):
    """A finished evaluation of the oracle and its folder."""
    folder = tmp_path_factory.mktemp("needle") / "out"
    options = RunOptions(folder, command=("python", "tool.py", "--seed", "1 2"))
    return evaluate(make_settings(samples=10), options, load_oracle), folder


def test_numbers_of_a_model_whose_recall_is_known(oracle_results):
    results, _ = oracle_results
    for length in (128, 512):
        on = results.find(MEMORY_ON, length)
        assert (on.samples, on.exact_match, on.first_token, on.token_accuracy) == (10, 1.0, 1.0, 1.0)
        assert on.low == pytest.approx(0.7225, abs=1e-4)
        assert results.find("never-shown", length).exact_match == 0
        assert results.find("memory-off", length, where="beyond window").exact_match == 0
        sides = [results.find(MEMORY_ON, length, where=where).samples for where in ("beyond window", "in window")]
        assert sides == [8, 2]  # the deepest of five depths ends in the window
        assert [results.find(MEMORY_ON, length, depth).samples for depth in results.settings.depth_grid()] == [2] * 5
    assert results.chance_exact == pytest.approx(32**-3)
    assert results.causality is not None and results.causality.passed
    assert results.reach == 15


def test_outputs_are_complete_and_agree(oracle_results):
    results, folder = oracle_results
    assert sorted(path.name for path in folder.iterdir()) == OUTPUTS
    values = json.loads((folder / "results.json").read_text())
    assert values["settings"]["memory_reset"] == "sample" and values["contexts"]["truncated"] == 0
    assert values["settings"]["reads"] == [1] and values["settings"]["lengths"] == [128, 512]
    assert values["causality"]["passed"] is True
    made = json.loads((folder / "run.json").read_text())
    assert made["provenance"]["command"] == "python tool.py --seed '1 2'"
    assert {"date", "commit", "torch", "hardware"} <= made["provenance"].keys()
    assert made["provenance"]["memory"] == "Every context starts from the model's initial memory."
    assert set(made["tokens_per_second"]) == {"128", "512"}
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert len(rows) == len(values["results"]) == len(results.rows)
    for row, value in zip(rows, values["results"], strict=True):
        assert row["condition"] == value["condition"] and float(row["exact_match"]) == value["exact_match"]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()[1:]]
    assert len(samples) == 20
    assert all(sample["texts"]["value"] == sample["texts"][MEMORY_ON] for sample in samples)


def test_the_report_needs_nothing_else(oracle_results):
    results, folder = oracle_results
    page = (folder / "report.html").read_text()
    assert not re.search(r"src=|href=\"[^#]|@import|url\([^#]", page)
    assert "$" not in page
    for said in ("512 tokens", "1.00", "[0.72, 1.00] of 10", "never shown", "15 tokens through all layers", "Passed"):
        assert said in page
    line = text_table(results).splitlines()[1].split()
    assert line == "128 1.00 [0.72, 1.00] (1.00) 1.00 1.00 1.00 0.20 (0.00) 0.20 (0.00) 0.00".split()


def test_the_picture_has_a_panel_per_condition(oracle_results, make_settings, tmp_path):
    results, folder = oracle_results
    bare = evaluate(make_settings(controls=()), RunOptions(tmp_path / "bare"), load_oracle)

    def width(png: bytes) -> int:
        assert png.startswith(b"\x89PNG")
        return struct.unpack(">I", png[16:20])[0]

    assert (folder / "heatmap.png").read_bytes() == draw_heatmap(results)
    assert width(draw_heatmap(results)) > width(draw_heatmap(bare))


def test_the_picture_has_the_interval_of_its_number_of_reads(oracle_results, monkeypatch):
    """A first read that recalls nothing beside a second one that recalls all."""
    results, _ = oracle_results
    rows = [row for row in results.rows if row.condition == MEMORY_ON]
    nothing = [replace(row, recall=replace(row.recall, exact_match=0.0, low=0.0, high=0.25)) for row in rows]
    again = [replace(row, reads=2, recall=replace(row.recall, low=0.75, high=1.0)) for row in rows]
    written, text = [], Axes.text
    monkeypatch.setattr(Axes, "text", lambda axes, x, y, s, **style: written.append(s) or text(axes, x, y, s, **style))
    draw_heatmap(replace(results, conditions=(MEMORY_ON,), reads=(1, 2), rows=(*nothing, *again)))
    assert [shown for shown in written if "–" in shown] == ["0.00–0.25"] * 2 + ["0.75–1.00"] * 2


def samples_without_times(log):
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "read_seconds"} for line in lines]


def test_a_stopped_evaluation_gives_the_files_of_an_uninterrupted_one(make_settings, tmp_path, oracle_results):
    _, whole = oracle_results
    settings, cut = make_settings(samples=10), tmp_path / "cut"
    evaluate(settings, RunOptions(cut), load_oracle)
    lines = (cut / "samples.jsonl").read_text().splitlines(keepends=True)
    (cut / "samples.jsonl").write_text("".join([lines[0], *lines[:2:-2], lines[4][:20]]))
    for name in ("results.json", "results.csv", "heatmap.png"):
        (cut / name).unlink()
    evaluate(settings, RunOptions(cut), load_oracle)
    for name in ("results.json", "results.csv", "heatmap.png"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert samples_without_times(cut / "samples.jsonl") == samples_without_times(whole / "samples.jsonl")


def test_a_stopped_evaluation_goes_on(make_settings, tmp_path, monkeypatch, capsys):
    settings, options = make_settings(), RunOptions(tmp_path / "out")
    first = evaluate(settings, options, load_oracle)
    log = tmp_path / "out" / "samples.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:5]) + lines[5][:20])
    asked = []
    run = needle_module.Evaluator.run
    monkeypatch.setattr(needle_module.Evaluator, "run", lambda self, cell: asked.append(cell) or run(self, cell))
    monkeypatch.setattr(needle_module, "write_outputs", lambda results, folder: None)
    again = evaluate(settings, options, load_oracle)
    assert len(asked) == 10 - 4
    assert "continuing: 4 of 10 samples are already finished" in capsys.readouterr().err
    assert again.rows == first.rows
    longer = evaluate(make_settings(lengths=(128, 512, 256)), options, load_oracle)
    assert len(asked) == 6 + 5 and longer.find(MEMORY_ON, 256).samples == 5
    evaluate(settings, RunOptions(tmp_path / "out", overwrite=True), load_oracle)
    assert len(asked) == 11 + 10


def test_another_evaluation_in_the_folder_is_refused(make_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(needle_module, "write_outputs", lambda results, folder: None)
    evaluate(make_settings(), RunOptions(tmp_path / "out"), load_oracle)
    with pytest.raises(ValueError, match=r"\(different: needles, seed\).*--overwrite"):
        evaluate(make_settings(seed=2, needles=2), RunOptions(tmp_path / "out"), load_oracle)


@pytest.mark.slow
def test_processes_do_not_change_a_number(make_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(needle_module, "write_outputs", lambda results, folder: None)
    settings = make_settings(lengths=(128,))
    alone = evaluate(settings, RunOptions(tmp_path / "one"), load_oracle)
    together = evaluate(settings, RunOptions(tmp_path / "two", workers=2), load_oracle)
    assert alone.rows == together.rows


def test_text_shorter_than_a_context_is_refused(make_settings, tmp_path):
    with pytest.raises(ValueError, match=r"the haystack .* has only \d+ tokens, but a context needs 1000000: add text"):
        evaluate(make_settings(lengths=(128, 10**6)), RunOptions(tmp_path / "out"), load_oracle)
    assert not (tmp_path / "out").exists()


def test_a_length_that_cannot_hold_the_facts_is_refused(make_settings, tmp_path):
    with pytest.raises(ValueError, match=r"--lengths 20 is too short for --needles 3: at least \d+ tokens"):
        evaluate(make_settings(lengths=(128, 20)), RunOptions(tmp_path / "out"), load_oracle)


def test_no_worker_is_refused(make_settings, tmp_path):
    with pytest.raises(ValueError, match="--workers 0 must be at least 1"):
        evaluate(make_settings(), RunOptions(tmp_path, workers=0), load_oracle)


def test_a_model_that_cannot_be_loaded_is_told(make_settings, tmp_path):
    with pytest.raises(ValueError, match="cannot load"):
        evaluate(make_settings(), RunOptions(tmp_path), fail_to_load)


def test_a_row_that_is_not_there(oracle_results):
    with pytest.raises(KeyError, match="no row for memory-on, 77 tokens"):
        oracle_results[0].find(MEMORY_ON, 77)
    assert math.isclose(oracle_results[0].chance_token, 1 / 32)
