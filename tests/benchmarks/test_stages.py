"""The benchmark of the stages: every kernel has its place, and what the profiler saw adds up."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from benchmarks import green, hardware, stages
from benchmarks.memory import Case
from benchmarks.run import main
from benchmarks.shapes import GRIDS
from benchmarks.stages import KERNELS, ROW_STAGES, Spent, profile, stage_of, sum_stages

OPS = Path(__file__).resolve().parents[2] / "megatron_fwpkm" / "ops"


def kernels_of_the_ops() -> set[str]:
    """Names of the Triton kernels that are launched: by their name, what they call has another."""
    found = set()
    for file in OPS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
                found |= {node.name} if node.name.endswith("_kernel") else set()
    return found


def test_every_kernel_belongs_to_a_stage():
    assert {name for name in kernels_of_the_ops() if stage_of(name) == "other"} == set()
    assert stage_of("ampere_sgemm_128x64_tn") == "selection" and stage_of("Memset (Device)") == "other"
    assert set(ROW_STAGES) < set(KERNELS)


def test_stages_are_sums_of_their_kernels():
    spent = [
        Spent("select_kernel", 3.0, 8), Spent("slots_kernel", 1.0, 8), Spent("sort", 0.5, 2),
        Spent("read_rows_kernel", 2.0, 8),
    ]  # fmt: skip
    assert sum_stages(spent) == {"selection": 4.0, "read": 2.0, "other": 0.5}


def test_the_profiler_sees_a_whole_call():
    spent, first, waits = profile(Case(GRIDS["rehearsal"][0], "sparse", "training", "cpu", 2))
    names = {one.kernel: one for one in spent}
    assert names["aten::baddbmm"].launches >= 1 and names["aten::baddbmm"].milliseconds > 0
    assert [one.milliseconds for one in spent] == sorted((one.milliseconds for one in spent), reverse=True)
    assert len(first["distinct_rows"]) == 3 and waits == 0


def test_rows_and_goals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spent = [Spent("write_rows_kernel", 0.004, 3), Spent("sort", 1.0, 1)]
    rows = [60, 50, 40]
    monkeypatch.setattr(stages, "profile", lambda _: (spent, {"distinct_rows": rows}, 0))
    monkeypatch.setattr(green, "require_green", lambda *_: "7 passed: tests/ops")
    monkeypatch.setattr(hardware, "copy_bandwidth", lambda _: 10e9)
    flags = ["--device", "cpu", "--grid", "rehearsal", "--output", str(tmp_path)]
    assert main(["stages", *flags]) == 0
    moved = 150 * 16 * 4 * 3 + 96 * 16 * 4 + 8 * 96 * 4
    share = f"{moved / 10e9 / 4e-6:.0%}"
    text = (tmp_path / "stages_rehearsal_sparse_training.md").read_text()
    assert f"| **write** | 0.004 |  | {moved / 2**20:.0f} | {share} |" in text
    assert "| write_rows_kernel | 0.004 | 3 |" in text and "| **other** | 1.000 |  |  |  |" in text
    goals = json.loads((tmp_path / "stages_rehearsal_sparse_training.json").read_text())["goals"]
    assert goals == [
        {"what": "write: share of the copy bandwidth", "measured": share, "wanted": ">= 60%", "met": True},
    ]  # fmt: skip
