"""The benchmark of saving: both ways write the same, and what they take is reported per GB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkpoint
from benchmarks.run import main


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.slow
@pytest.mark.parametrize("side", checkpoint.SIDES)
def test_a_side_saves_and_loads(side: str, tmp_path: Path) -> None:
    found = checkpoint.measure_side(side, str(tmp_path), 1, 16, 1)
    tables = 4 * 512 * (16 * 16 + 16)
    assert tables < found["bytes"]["fast_weights"] < 1.1 * tables
    assert found["bytes"]["all"] > found["bytes"]["fast_weights"] + found["bytes"]["model"] > found["bytes"]["model"]
    assert len(found["held"]) == len(found["published"]) == 1 and len(found["alone"]) == 3
    assert bool(found["meanwhile"]) == (side == "background")
    assert 0 < found["held"][0] <= found["published"][0] and found["load"] > 0
    assert [path.name for path in tmp_path.glob("iter_*")] == ["iter_0000004"]


def measured(side: str, *_: Any) -> dict[str, Any]:
    """Stands for a process that measures one side."""
    held, meanwhile = (8.0, []) if side == "foreground" else (0.5, [0.2, 0.3])
    sizes = {"fast_weights": 1_500_000_000, "model": 400_000_000, "all": 2_000_000_000}
    found = {"held": [held] * 3, "published": [8.0] * 3, "alone": [0.1], "meanwhile": meanwhile, "load": 4.0}
    return found | {"bytes": sizes}


def test_the_report_is_per_gigabyte(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "_in_own_process", measured)
    assert main(["checkpoint", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| foreground | 8.00 | 4.00 | 8.00 | 4.00 | 100 |  | 2.00 |" in text
    assert "| background | 0.50 | 0.25 | 8.00 | 4.00 | 100 | 250 | 2.00 |" in text
    assert "1.500 GB for 1.076 GB of tables" in text
    assert set(json.loads((tmp_path / "checkpoint.json").read_text())["data"]["sides"]) == set(checkpoint.SIDES)


def test_ways_that_write_different_amounts_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def torn(side: str, *_: Any) -> dict[str, Any]:
        found = measured(side)
        return found | {"bytes": found["bytes"] | {"all": 1}} if side == "background" else found

    monkeypatch.setattr(checkpoint, "_in_own_process", torn)
    assert main(["checkpoint", "--output", str(tmp_path)]) == 1
    assert "the two ways do not write the same" in capsys.readouterr().err
