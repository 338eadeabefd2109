"""The benchmark of the memory: what it measures agrees, and it refuses to report what disagrees or is not tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import green, hardware, memory
from benchmarks.memory import Case, check_agreement, measure
from benchmarks.run import main
from benchmarks.shapes import GRIDS, Shape
from benchmarks.traffic import backward_stages, call_bytes, forward_stages

SHAPE = GRIDS["rehearsal"][0]


def test_all_implementations_compute_the_same() -> None:
    sides = {name: measure(Case(SHAPE, name, "training", "cpu", 2)) for name in ("reference", "sparse")}
    check_agreement(sides)
    for side in sides.values():
        assert set(side["norms"]) == {"retrieved", "queries", "targets", "gates"}
        assert len(side["milliseconds"]) == 2 and side["peak_bytes"] > 50 * 2**20
        assert side["distinct_rows"] == sides["reference"]["distinct_rows"] and len(side["distinct_rows"]) == 3
        assert all(4 <= rows <= 2 * 16 * 4 for rows in side["distinct_rows"])
    sides["sparse"]["norms"]["gates"] *= 1.01
    with pytest.raises(RuntimeError, match="no speed-up is reported: the norm of gates is"):
        check_agreement(sides)
    sides["sparse"] = {"failed": "out of memory"}
    check_agreement(sides)


def test_another_undo_log_is_another_case() -> None:
    shapes = {log: replace(SHAPE, undo_log=log) for log in ("fp32", "bf16")}
    sides = {log: measure(Case(shape, "sparse", "training", "cpu", 1)) for log, shape in shapes.items()}
    assert sides["fp32"]["norms"]["retrieved"] == sides["bf16"]["norms"]["retrieved"]
    assert sides["fp32"]["norms"]["queries"] != sides["bf16"]["norms"]["queries"]


def test_a_bfloat16_table_is_measured_without_the_reference() -> None:
    shape = replace(SHAPE, table_dtype="bfloat16")
    sides = {name: measure(Case(shape, name, "training", "cpu", 1)) for name in ("sparse",)}
    full = measure(Case(SHAPE, "sparse", "training", "cpu", 1))
    assert sides["sparse"]["norms"]["gates"] != full["norms"]["gates"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "measure_apart", measured)
        found = memory.measure_shape(shape, ("reference", "sparse"), "cpu", 1)
    assert {tuple(modes) for modes in found.values()} == {("sparse",)}


def test_bytes_are_counted_by_stage() -> None:
    shape = Shape(2, 8, 1, 3, 16, 4, 32, 4)
    # 16 tokens, 48 pairs, 30 rows of 128 bytes in two chunks, sub-keys of 256 bytes.
    forward, backward = forward_stages(shape, [10, 20], training=True), backward_stages(shape, [10, 20])
    assert forward == {
        "selection": 16 * 16 + 3 * 2 * 256 + 48 * 8,
        "read": 30 * 128 + 3 * 16 * 128 + 48 * 8,
        "write": 30 * 128 * 3 + 16 * 128 + 48 * 8,
    }
    assert backward["backward_token"] == 30 * 128 * 2 + 4 * 16 * 128 + 48 * 12
    assert backward["adjoint"] == 30 * 128 * 2 + 16 * 128 + 48 * 8
    assert call_bytes(shape, [10, 20], training=True) == sum(forward.values()) + sum(backward.values())
    # Inference logs nothing; half the bytes a row in bfloat16.
    half = Shape(2, 8, 1, 3, 16, 4, 32, 4, "bfloat16")
    logged = 30 * 128
    assert backward_stages(half, [10, 20])["backward_token"] == 30 * (64 + 128) + 4 * 16 * 128 + 48 * 12
    assert call_bytes(shape, [10, 20], training=False) == sum(forward.values()) - logged
    rounded = replace(shape, undo_log="bf16")
    assert forward_stages(rounded, [10, 20], training=True)["write"] == forward["write"] - 30 * 64
    assert backward_stages(rounded, [10, 20])["backward_token"] == backward["backward_token"] - 30 * 64
    assert forward_stages(half, [10, 20], training=False)["write"] == 30 * 64 * 2 + 16 * 128 + 48 * 8


def measured(case: Case) -> dict[str, Any]:
    """Stands for a process that measures one case."""
    milliseconds = 8.0 if case.implementation == "reference" else 0.5
    return {
        "milliseconds": [milliseconds] * case.repeats, "peak_bytes": 2**30, "norms": {"retrieved": 1.0},
        "distinct_rows": [100] * -(-case.shape.tokens // case.shape.chunk_size),
    }  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither tests nor measurements: only what the benchmark does with them."""
    monkeypatch.setattr(memory, "measure_apart", measured)
    monkeypatch.setattr(green, "require_green", lambda *_: "7 passed: tests/ops")
    monkeypatch.setattr(hardware, "copy_bandwidth", lambda _: 1e10)


def test_the_report_is_written_with_its_provenance(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", "--device", "cpu", "--grid", "small", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "memory_small.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    moved = call_bytes(GRIDS["small"][0], [100] * 4, training=True)
    share = f"{moved / 1e10 / 0.0005:.1%}"
    assert f"| small | training | sparse | 0.5 | {moved / 2**20:.0f} | {share} | 1.00 | 16.0x |" in text
    assert "![The memory operation](memory_small.png)" in text
    assert (tmp_path / "memory_small.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "memory_small.json").read_text())
    assert set(found["provenance"]) == {
        "command", "commit", "date", "python", "torch", "processor", "system", "tests",
    }  # fmt: skip
    assert all(found["provenance"].values()) and found["provenance"]["tests"] == "7 passed: tests/ops"
    assert found["data"]["results"][0]["modes"]["inference"]["sparse"]["milliseconds"] == [0.5] * 3


def test_given_sizes_are_combined(quick: None, tmp_path: Path) -> None:
    flags = ["--grid", "small", "--batch", "1", "2", "--topk", "4", "8", "--output", str(tmp_path)]
    assert main(["memory", "--device", "cpu", *flags]) == 0
    content = json.loads((tmp_path / "memory_small_batch_topk.json").read_text())["data"]["results"]
    assert [(one["shape"]["batch"], one["shape"]["topk"]) for one in content] == [(1, 4), (1, 8), (2, 4), (2, 8)]
    assert {one["shape"]["tokens"] for one in content} == {256}
    assert "| batch=2 topk=8 | training | sparse |" in (tmp_path / "memory_small_batch_topk.md").read_text()


def test_what_does_not_fit_is_said(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def too_large(case: Case) -> dict[str, Any]:
        return {"failed": "out of memory"} if case.implementation == "reference" else measured(case)

    monkeypatch.setattr(memory, "measure_apart", too_large)
    assert main(["memory", "--device", "cpu", "--grid", "small", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "memory_small.md").read_text()
    assert "| small | training | reference | out of memory |" in text and "1.00 |  |" in text


def test_a_side_that_fails_ends_the_run(
    quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> dict[str, Any]:
        raise RuntimeError("sparse (training) failed with exit code 1")

    monkeypatch.setattr(memory, "measure_apart", fails)
    assert main(["memory", "--device", "cpu", "--output", str(tmp_path)]) == 1
    assert "error: sparse (training) failed" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_process_of_its_own_tells_what_went_wrong() -> None:
    with pytest.raises(RuntimeError, match=r"sparse \(training\) failed with exit code 1:[\s\S]*topk=99 exceeds"):
        memory.measure_apart(Case(Shape(1, 8, 1, 99, 4, 4, 4, 4), "sparse", "training", "cpu", 1))


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["memory", "--repeats", "0"])
    assert exit_code.value.code == 2 and "--repeats 0 must be at least 1" in capsys.readouterr().err


def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "--device", "cuda", "--output", str(tmp_path)]) == 1
    assert "--device cuda is not there; --device cpu" in capsys.readouterr().err
    assert hardware.resolve("auto") == "cpu"
