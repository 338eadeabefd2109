"""Two evaluations of the same samples: the statistics against independent ones, the pairs, and errors for people."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from megatron_fwpkm.evaluation.confidence import bootstrap_interval, mcnemar_exact
from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.needle.run import evaluate
from megatron_fwpkm.evaluation.needle.settings import MEMORY_ON
from megatron_fwpkm.evaluation.paired.paired_answers import read_answers
from megatron_fwpkm.evaluation.paired.paired_table import compare_answers
from tests.evaluation.oracle import load_oracle
from tests.tools.in_process import run_tool

IDENTITY = {"weights": "a", "seed": 1, "protocol": "streaming"}


def needle_line(length: int, index: int, exact: bool, off: bool = False, value: str = "karo") -> dict:
    """A record of the needle evaluation, as far as it matters."""
    answers = [("memory-on", 1, exact), ("memory-on", 4, True), ("memory-off", 1, off)]
    return {
        "length": length, "depth": 0.5, "index": index, "texts": {"question": "The code is", "value": value},
        "answers": [{"condition": name, "reads": reads, "exact": right} for name, reads, right in answers],
    }  # fmt: skip


def write(folder, lines, **changes):
    """A folder with samples.jsonl, and results.json as of a finished evaluation."""
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text("{}")
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (IDENTITY | changes, *lines)))
    return folder


@pytest.fixture
def folders(tmp_path):
    """The first answers 2 of 8 and 4 of 4, the second 8 of 8 and 3 of 5; 12 samples are in both."""
    one = [needle_line(128, i, i < 2) for i in range(8)] + [needle_line(512, i, True) for i in range(4)]
    other = [needle_line(128, i, True) for i in range(8)] + [needle_line(512, i, i < 3) for i in range(5)]
    changes = {"weights": "b", "protocol": "official", "chain": {"samples": [8, 5]}}
    return write(tmp_path / "one", one), write(tmp_path / "other", other, **changes)


def test_mcnemar_is_the_sum_over_all_outcomes():
    for first, second in itertools.product(range(6), repeat=2):
        pairs = first + second
        as_far = [o for o in itertools.product((0, 1), repeat=pairs) if abs(2 * sum(o) - pairs) >= abs(first - second)]
        assert mcnemar_exact(first, second) == pytest.approx(len(as_far) / 2**pairs, rel=1e-15)
    assert mcnemar_exact(0, 5000) == 0.0 and mcnemar_exact(600, 700) == pytest.approx(0.00604, rel=0.01)


def test_the_bootstrap_agrees_with_drawing_single_samples():
    values = np.random.default_rng(4).choice([-1.0, 0.0, 0.25, 1.0], size=60, p=[0.1, 0.5, 0.2, 0.2])
    found = bootstrap_interval(list(values), draws=40_000)
    means = np.random.default_rng(9).choice(values, size=(40_000, 60)).mean(axis=1)
    assert found.mean == pytest.approx(values.mean(), rel=1e-15)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), abs=0.012)
    again, other = (bootstrap_interval(list(values), seed=seed, draws=30) for seed in (0, 1))
    assert again == bootstrap_interval(list(values), draws=30) != other
    assert bootstrap_interval([0.5, 0.5]).low == 0.5


def test_samples_are_paired_by_length_and_over_all(folders):
    first, second = (read_answers("--first", folder) for folder in folders)
    results = compare_answers(first, second)
    short, long, both = results.rows
    assert (short.length, short.samples, short.first, short.second) == (128, 8, 0.25, 1.0)
    assert (short.only_first, short.only_second, short.p_value) == (0, 6, 2 / 64)
    assert (long.only_first, long.only_second, long.p_value) == (1, 0, 1.0)
    assert (both.length, both.samples, both.difference.mean) == (None, 12, pytest.approx(5 / 12))
    assert both.difference.low < 5 / 12 < both.difference.high and results.left_out == 1
    off = compare_answers(first, first, ("memory-off", "memory-on, 4 reads"))
    assert (off.rows[-1].first, off.rows[-1].second, off.left_out) == (0.0, 1.0, 0)


def test_ruler_is_scored_as_ruler_does(tmp_path):
    line = {"task": "niah_multivalue", "length": 256, "index": 0, "answers": ["Ab", "cd"]}
    line |= {"predictions": {"memory-on": "xab"}}
    question = line | {"task": "qa_1"}
    read = read_answers("--first", write(tmp_path / "ruler", [line, question]))
    assert [scores["memory-on"] for scores in read.scores.values()] == [0.5, 1.0]
    row = compare_answers(read, read).rows[-1]
    assert (row.first, row.only_first, row.p_value, row.difference.mean) == (0.75, 0, 1.0, 0.0)
    over_lines = line | {"answers": ["a\nb"], "predictions": {"memory-on": "a\x07b"}}
    read = read_answers("--first", write(tmp_path / "control", [over_lines]))
    assert [scores["memory-on"] for scores in read.scores.values()] == [1.0], "scored as cleaned text"


def test_needles_that_were_measured_can_be_read(make_settings, tmp_path):
    settings = make_settings(lengths=(128,), controls=("memory-off", "never-shown"))
    results = evaluate(settings, RunOptions(tmp_path), load_oracle)
    read = read_answers("--first", tmp_path)
    assert (read.conditions()[0], set(read.conditions())) == (MEMORY_ON, {MEMORY_ON, "memory-off", "never-shown"})
    row = compare_answers(read, read, ("never-shown", MEMORY_ON)).rows[0]
    assert (row.samples, row.second) == (5, results.find(MEMORY_ON, 128).exact_match)
    assert row.first == results.find("never-shown", 128).exact_match < row.second


def test_the_tool(folders, tmp_path, capsys):
    flags = ["--first", folders[0], "--second", folders[1], "--output", tmp_path / "c"]
    done = run_tool(capsys, "compare_evaluations", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].split()[:4] == ["context", "samples", "first", "second"]
    assert done.stdout.splitlines()[3].split()[:7] == ["128", "8", "0.250", "1.000", "0", "6", "0.031"]
    page = (tmp_path / "c" / "report.html").read_text()
    assert "xtick_2" in page and "xtick_3" not in page, "the curve has lengths only"
    values = json.loads((tmp_path / "c" / "results.json").read_text())
    assert values["left_out"] == 1 and values["results"][1]["p_value"] == 1.0
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "report.html", "report_part.json", "results.csv", "results.json"
    }  # fmt: skip


def test_what_is_not_finished_or_left_out_is_said(folders, tmp_path, capsys):
    flags = ["--first", folders[0], "--second", folders[1], "--output", tmp_path / "c"]
    done = run_tool(capsys, "compare_evaluations", *flags)
    assert done.stderr.splitlines() == ["left out: 1 sample that only one of both has"]
    (folders[0] / "results.json").unlink()
    (folders[1] / "samples.rank1.jsonl").write_text("")
    done = run_tool(capsys, "compare_evaluations", *flags)
    first, second, _ = done.stderr.splitlines()
    assert done.returncode == 0
    assert first == (
        f"--first {folders[0]} is not finished (no results.json): 12 samples so far; its command continues it"
    )
    assert second == (
        f"--second {folders[1]} is not finished: samples.rank1.jsonl is not read; its command takes it over"
    )
    assert "is not finished (no results.json)" in (tmp_path / "c" / "report.html").read_text()


def test_what_cannot_be_paired_is_refused(folders, tmp_path, capsys):
    lines = [needle_line(128, 0, True)]
    cases = [
        (tmp_path / "none", "--second .* has no samples.jsonl; give the --output of a needle or RULER evaluation"),
        (write(tmp_path / "seed", lines, seed=2), r"asked different samples \(different: seed\); compare evaluations"),
        (write(tmp_path / "value", [needle_line(128, 0, True, value="x")]), "asked different questions in sample"),
        (write(tmp_path / "apart", [needle_line(64, 0, True)]), "have no sample in common"),
        (write(tmp_path / "empty", []), "has no finished sample; run its evaluation first"),
        (write(tmp_path / "losses", [{"stream": 0}]), "is not one of a finished needle or RULER evaluation"),
    ]
    first = read_answers("--first", folders[0])
    for folder, message in cases:
        with pytest.raises(ValueError, match=message):
            compare_answers(first, read_answers("--second", folder))
    with pytest.raises(ValueError, match="no condition 'frozen'; choose from 'memory-on', 'memory-on, 4 reads', 'mem"):
        compare_answers(first, first, ["frozen"])
    done = run_tool(capsys, "compare_evaluations", "--first", "a", "--second", "b", "--conditions", "a", "b", "c")
    assert done.returncode == 1 and "--conditions has 3 names" in done.stderr
