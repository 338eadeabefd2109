"""The closing table: every goal of every report, and an exit code that tells whether one was missed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import Goal, Report, provenance
from benchmarks.summary import main, summarize


def write(folder: Path, name: str, *goals: Goal) -> None:
    Report(name, "T", [], ["a"], [["1"]], {}, provenance("command"), goals=goals).write(folder)


def test_goals_are_gathered(tmp_path, capsys):
    write(tmp_path, "layer", Goal("one layer", "2.50 ms", "< 3 ms", True))
    write(tmp_path, "model", Goal("model with 3 memories", "1.20x", "< 1.3x", None))
    assert summarize(tmp_path) == [
        "report  goal                   measured  wanted  met",
        "layer   one layer              2.50 ms   < 3 ms  yes",
        "model   model with 3 memories  1.20x     < 1.3x  not judged here",
    ]
    assert main([str(tmp_path)]) == 0
    write(tmp_path, "stages", Goal("read", "40%", ">= 60%", False))
    assert main([str(tmp_path)]) == 1 and "stages  read" in capsys.readouterr().out
    assert "| read | 40% | >= 60% | no |" in (tmp_path / "stages.md").read_text()


def test_a_folder_without_goals(tmp_path, capsys):
    write(tmp_path, "preprocess")
    assert main([str(tmp_path)]) == 0 and capsys.readouterr().out == "no goals here\n"
