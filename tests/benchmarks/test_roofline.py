"""The cost model: what bounds a launch, what a layer and a model take, and where the GPU suite finds it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import cost_model, roofline
from benchmarks.cost_model import (
    GPUS,
    GRAPH_SECONDS,
    KERNEL_SECONDS,
    LAUNCH_SECONDS,
    UTILISATION,
    Gpu,
    Surroundings,
    Work,
    work_of,
)
from benchmarks.roofline import predict

ROOT = Path(__file__).resolve().parents[2]
BOUNDS = {"memory", "compute", "latency", "host"}
UNIT = Gpu(bandwidth=1e9 / cost_model.STREAM_SHARE, float32=1e9 / cost_model.FLOAT32_SHARE,
           bfloat16=1e10 / cost_model.BFLOAT16_SHARE, tfloat32=1e10 / cost_model.TFLOAT32_SHARE,
           source="a test")  # fmt: skip
"""Streams a byte in a nanosecond and does an operation in one, ten on its tensor cores."""


def around(host: float, launches: int, waits: int, model_seconds: float, layers: int) -> Surroundings:
    """What a layer stands in whose host needs so many seconds without the driver."""
    return Surroundings(host / launches, waits, model_seconds * UNIT.bfloat16 * UTILISATION, layers)


def test_a_launch_takes_as_long_as_its_slowest_part():
    assert Work("copy", 1e6).seconds(UNIT, KERNEL_SECONDS) == pytest.approx(1e-3)
    assert Work("copy", 10).seconds(UNIT, KERNEL_SECONDS) == KERNEL_SECONDS
    assert Work("copy", 10).seconds(UNIT, GRAPH_SECONDS) == GRAPH_SECONDS < KERNEL_SECONDS
    assert Work("mm", 1e6, flops=1e7).seconds(UNIT, KERNEL_SECONDS) == pytest.approx(1e-2)
    assert Work("mm", 1e6, flops=1e7, unit="bfloat16").seconds(UNIT, KERNEL_SECONDS) == pytest.approx(1e-3)
    assert Work("sort", 10, launches=10).seconds(UNIT, KERNEL_SECONDS) == pytest.approx(10 * KERNEL_SECONDS)
    assert Work("scan", 10, serial=1.0).seconds(UNIT, KERNEL_SECONDS) == 1.0
    rows = Work("read_rows_kernel", 1e6).seconds(UNIT, KERNEL_SECONDS)
    assert rows == pytest.approx(1e-3 * cost_model.STREAM_SHARE / cost_model.ROWS_SHARE), "rows reach less than streams"


def test_a_layer_takes_the_longer_of_gpu_and_host():
    work = [Work("copy", 1e6)] * 3
    launched = 3 * LAUNCH_SECONDS
    fast = predict(UNIT, work, around(1e-3, 3, 0, 0.03, 2))
    assert fast.device["eager"] == pytest.approx(3) and fast.layer["eager"] == pytest.approx(3)
    assert fast.ratio["eager"] == pytest.approx(1.2) == fast.ratio["host"] == fast.ratio["graph"]
    slow = predict(UNIT, work, around(1e-2 - launched, 3, 0, 0.03, 2))
    assert slow.host == slow.layer["eager"] == pytest.approx(10) and slow.layer["graph"] == pytest.approx(3)
    assert slow.ratio["eager"] == pytest.approx(1.2) and slow.ratio["host"] == pytest.approx(1 + 2 / 3)
    waiting = predict(UNIT, work, around(1e-3 - launched, 3, 5, 0.03, 2))
    assert waiting.layer["eager"] == pytest.approx(3 + 1 + 5e3 * cost_model.WAIT_SECONDS)
    assert waiting.ratio["eager"] == waiting.ratio["host"] > 1.2


def test_what_bounds_a_kernel():
    work = [Work("big", 1e6), Work("small", 10), Work("small", 30)]
    kernels = predict(UNIT, work, around(0.0, 3, 0, 1.0, 1)).kernels
    assert list(kernels) == ["big", "small"] and kernels["big"]["bound"] == "memory"
    assert kernels["small"] == {
        "launches": 2, "bytes": 40.0, "microseconds": pytest.approx(2e6 * KERNEL_SECONDS), "bound": "host"
    }  # fmt: skip
    slow_start = Work("sort", 10, launches=1, serial=1e-3)
    assert predict(UNIT, [slow_start], around(0.0, 1, 0, 1.0, 1)).kernels["sort"]["bound"] == "latency"


def test_operators_become_work():
    products, moved = [("mm", 100, 10, 2), ("bmm", 50, 10, 4)], [("sort", 16, 4), ("cummax", 24_000, 8), ("add", 5, 1)]
    counted = SimpleNamespace(arguments=[], matmuls=products, moved=moved)
    matmul, exact, sort, scan, add = work_of(counted, 16, 8)
    assert (matmul.unit, exact.unit) == ("bfloat16", "float32") and matmul.flops == 100
    assert sort.launches == 4 + 2 and sort.bytes == 4 * 16, "a pass for each byte"
    assert scan.serial == pytest.approx(1000 * 1.8e-9) and add == Work("torch.add", 5)


def test_a_goal_says_which_gpu_meets_it():
    costs = {"device": {}, "host": 0.0, "model": 1.0, "kernels": {}}
    found = {
        "H100": roofline.Prediction(**costs, layer={"eager": 4.0, "graph": 3.5}, ratio={"host": 1.4, "graph": 1.2}),
        "H200": roofline.Prediction(**costs, layer={"eager": 4.0, "graph": 2.5}, ratio={"host": 1.2, "graph": 1.1}),
    }
    goals = {goal.what: (goal.measured, goal.met) for goal in roofline._goals(found)}
    assert goals["layer, with CUDA graphs, on an H100 or H200"] == ("H100 3.50 ms (no), H200 2.50 ms (yes)", True)
    assert goals["layer, without CUDA graphs, on an H100 or H200"] == ("H100 4.00 ms (no), H200 4.00 ms (no)", False)
    assert goals["model, without CUDA graphs, on an H100 or H200"] == ("H100 1.40x (no), H200 1.20x (yes)", True)


def test_constants_have_a_source():
    assert set(GPUS) == {"A100", "H100", "H200", "B200"} and all(gpu.source for gpu in GPUS.values())


def test_the_suite_finds_its_gpu(tmp_path: Path) -> None:
    predictions = {"data": {"predictions": {"H100": {"host": 1.0}, "H200": {"host": 2.0}}}}
    (tmp_path / "roofline.json").write_text(json.dumps(predictions))
    assert roofline.predicted("NVIDIA H200", tmp_path) == {"host": 2.0}
    assert roofline.predicted("NVIDIA GeForce RTX 5090", tmp_path) is None
    assert roofline.predicted("NVIDIA B200") is not None, "of the recorded ones"


def test_a_prediction_stands_beside_a_measurement(tmp_path: Path) -> None:
    one = {"layer": {"eager": 7.0, "graph": 3.0}, "device": {"eager": 3.5}}
    one["ratio"] = {"eager": 1.15, "host": 1.4, "graph": 1.1}
    (tmp_path / "roofline.json").write_text(json.dumps({"data": {"predictions": {"H200": one}}}))
    layer, model = (roofline.prediction_note(what, "NVIDIA H200", tmp_path) for what in ("layer", "model"))
    assert layer is not None and "7.00 ms, 3.00 with CUDA graphs; the GPU's work alone 3.50." in layer
    assert model is not None and "1.15 to 1.40 times the model without memories, 1.10 with CUDA graphs." in model
    assert roofline.prediction_note("layer", "NVIDIA L4", tmp_path) is None


@pytest.mark.slow
def test_the_report_says_what_bounds_every_kernel(tmp_path: Path) -> None:
    """In a process of its own: the layer stands in a world of ranks that do not exist."""
    command = [sys.executable, "-m", "benchmarks.run", "roofline", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=240, check=True)
    found = roofline.predicted("NVIDIA H200", tmp_path)
    assert found is not None and {entry["bound"] for entry in found["kernels"].values()} <= BOUNDS
    assert found["layer"]["graph"] <= found["layer"]["eager"] and found["ratio"]["graph"] > 1
    text = (tmp_path / "roofline.md").read_text()
    assert "| **layer with CUDA graphs, ms** |" in text and "| write_rows_kernel | 8 |" in text
    assert "| the chains on two streams, with CUDA graphs |" in text and "| values, backward |" in text
    changes = json.loads((tmp_path / "roofline.json").read_text())["data"]["not_built"]
    layers = [one["layer"] for by_gpu in changes.values() for by_way in by_gpu.values() for one in by_way.values()]
    assert layers and all(after <= before for before, after in layers)
    assert all(by_gpu["H200"]["graph"]["layer"][0] == found["layer"]["graph"] for by_gpu in changes.values())
