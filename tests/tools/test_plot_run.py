"""tools/plot_run.py: a picture and a page of runs that are whole, still written, resumed, empty, or no runs at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.evaluation.training_curves.figure import draw_curves
from megatron_fwpkm.evaluation.training_curves.history import read_histories, read_history, smooth
from tests.tools.in_process import run_tool


def record(iteration: int, loss: float, seconds: float, **others: Any) -> dict[str, Any]:
    memory = {"3": {"gate_mean": 0.5, "memorization_loss": loss}, "11": {"gate_mean": 0.25, "memorization_loss": loss}}
    numbers = {"lm_loss": loss, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 100.0, "consumed_tokens": iteration}
    return {"kind": "train", "iteration": iteration, "seconds": seconds, **numbers, "memory": memory, **others}


def write(folder: Path, *records: dict[str, Any], cut: str = "") -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(found) + "\n" for found in records) + cut)
    return folder


REWIND = {"kind": "rewind", "iteration": 10, "reason": "iteration 17: the loss is nan", "left_out": [40, 67]}
EVALUATION = {"kind": "evaluation", "iteration": 20, "lm_loss": 2.5}


def test_a_picture_and_a_page_without_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "a", record(10, 3.0, 1), record(20, 2.0, 2), EVALUATION, cut='{"kind": "tra')
    second = write(tmp_path / "b<i>", record(10, 3.5, 1), REWIND, record(20, 2.5, 2))
    done = run_tool(capsys, "plot_run", "--runs", first, second / "metrics.jsonl", "--smoothing", 0.5, "--output",
                    tmp_path / "plots")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plots" / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "plots" / "curves.html").read_text()
    assert re.findall(r'(?:src|href|url)\W+([\w]+:)', page) == ["data:"] and "b<i>" not in page
    assert "rewind: iteration 17: the loss is nan" in page and ">2.5000<" in page


def test_the_last_of_overlapping_records_wins(tmp_path: Path) -> None:
    old = [record(10, 4.0, 1), record(20, 3.0, 2), EVALUATION, record(30, 9.0, 3)]
    again = [record(20, 2.0, 1), {**EVALUATION, "lm_loss": 2.25}, record(25, 1.5, 2)]
    end = {"kind": "end", "iteration": 25, "reason": "finished"}
    history = read_history(write(tmp_path / "run", *old, *again, end))
    assert history.curve("lm_loss") == ([10, 20, 25], [4.0, 2.0, 1.5])
    assert history.validation() == ([20], [2.25])
    assert history.events == [(20, "resumed")]
    assert history.layers() == ["3", "11"] and history.memory("11", "gate_mean")[1] == [0.25] * 3
    assert history.summary()["end"] == "finished"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no training records yet"),
        ('{"kind": "evaluation", "iteration": 5}\n', "has no training records yet"),
        ("notes\n{}\n", "line 1 is not JSON"),
        ('{"kind": "train"}\n', "line 1 is no record of a run"),
        ('{"kind": "train", "iteration": 1}\n', "line 1 is no training record: it needs `lm_loss`"),
    ],
)
def test_what_is_no_log_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    done = run_tool(capsys, "plot_run", "--runs", tmp_path)
    assert done.returncode == 1 and said in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_missing_runs_and_labels_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist: give a run's metrics.jsonl" in run_tool(capsys, "plot_run", "--runs", tmp_path).stderr
    done = run_tool(capsys, "plot_run", "--runs", "a", "b", "--labels", "x")
    assert done.returncode == 1 and "--labels has 1 names for 2 --runs" in done.stderr


def test_runs_of_the_same_name_are_numbered(tmp_path: Path) -> None:
    place = write(tmp_path / "run", record(10, 4.0, 1))
    assert [run.label for run in read_histories([place, place], [None, None])] == ["run (1)", "run (2)"]


def test_smoothing_is_not_pulled_to_its_start() -> None:
    assert smooth([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0] * 3)
    assert smooth([1.0, 3.0], 0.0) == [1.0, 3.0]
    assert smooth([1.0, 3.0], 0.5) == pytest.approx([1.0, 7 / 3])


def test_checkpoints_are_marked_and_no_events(tmp_path: Path) -> None:
    saves = [{"kind": "save", "iteration": number, "seconds": 1.0, "bytes": 9} for number in (10, 20)]
    place = write(tmp_path / "run", record(10, 4.0, 1), saves[0], record(20, 3.0, 2), saves[1])
    (history,) = read_histories([place], [None])
    assert history.saves == [10, 20] and history.events == []
    without = read_histories([write(tmp_path / "other", record(10, 4.0, 1), record(20, 3.0, 2))], ["run"])
    assert draw_curves([history]) != draw_curves(without)
