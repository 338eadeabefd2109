"""The benchmark of the memory: what it measures agrees, and it refuses to report when it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory
from benchmarks.memory import Shape, check_agreement, measure_side
from benchmarks.run import main


def test_both_sides_compute_the_same() -> None:
    shape = Shape(batch=2, tokens=24, heads=1, topk=2, num_subkeys=8, key_dim=8, value_dim=4, chunk_size=8)
    sides = {name: measure_side(name, "training", shape, 2) for name in ("reference", "sparse")}
    check_agreement(sides)
    for side in sides.values():
        assert set(side["norms"]) == {"retrieved", "queries", "targets", "gates"}
        assert len(side["cpu_seconds"]) == 2 and side["peak_bytes"] > 50 * 2**20
    sides["sparse"]["norms"]["gates"] *= 1.01
    with pytest.raises(RuntimeError, match="no speed-up is reported: the norm of gates is"):
        check_agreement(sides)


def measured(implementation: str, mode: str, shape: str, repeats: int) -> dict[str, Any]:
    """Stands for a process that measures one side."""
    seconds = 8.0 if implementation == "reference" else 0.5
    return {"cpu_seconds": [seconds] * repeats, "peak_bytes": 2**30, "norms": {"retrieved": 1.0}}


def test_the_report_is_written_with_its_provenance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "_measure_in_own_process", measured)
    assert main(["memory", "--shape", "small", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "memory_small.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "| training | sparse | 0.5 | 1.00 | 16.0x |" in text
    found = json.loads((tmp_path / "memory_small.json").read_text())
    assert set(found["provenance"]) == {"command", "commit", "date", "python", "torch", "processor", "system"}
    assert all(found["provenance"].values())
    assert found["data"]["modes"]["inference"]["speedup"] == 16.0


def test_a_side_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: Any) -> dict[str, Any]:
        raise RuntimeError("sparse (training) failed with exit code 1")

    monkeypatch.setattr(memory, "_measure_in_own_process", fails)
    assert main(["memory"]) == 1
    assert "error: sparse (training) failed" in capsys.readouterr().err


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["memory", "--repeats", "0"])
    assert exit_code.value.code == 2 and "--repeats 0 must be at least 1" in capsys.readouterr().err
