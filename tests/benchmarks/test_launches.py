"""The counters: no figure is higher than recorded, and they count what there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import launches
from benchmarks.counted_calls import Subject, count_op, op_call, paper_shape
from benchmarks.counting import Counted, OpCalls, counting
from benchmarks.host_time import measure
from benchmarks.launches import FIGURES, RECORD, differences

ROOT = Path(__file__).resolve().parents[2]


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: no kernels to count")


def counted(function) -> Counted:
    """What a function does on tensors without data."""
    with counting(triton=False) as found:
        function()
    return found


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@needs_triton
def test_nothing_is_higher_than_recorded():
    """In a process of its own: the layer stands in a world of two ranks."""
    command = [sys.executable, "-m", "benchmarks.run", "launches", "--check", "--quick"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr


@needs_triton
@pytest.mark.slow
def test_nothing_at_all_is_higher_than_recorded():
    command = [sys.executable, "-m", "benchmarks.run", "launches", "--check"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr


def test_differences_go_both_ways():
    before = {"torch": "2.13.0+cpu", "subjects": {"a": {"forward": dict.fromkeys(FIGURES, 10)}}}
    after = {"torch": "2.13.0", "subjects": {"a": {"forward": dict.fromkeys(FIGURES, 10) | {"waits": 11, "bytes": 9}}}}
    more, less = differences(before, after)
    assert more == ["a, forward: waits 10 -> 11"] and less == ["a, forward: bytes 10 -> 9"]
    assert differences(before, after | {"torch": "2.14.0"}) == (more, [])
    before["subjects"]["a"]["forward"]["bytes"] = after["subjects"]["a"]["forward"]["bytes"] = 10_000
    for moved, expected in ((10_100, 1), (10_101, 2), (9_901, 1)):
        after["subjects"]["a"]["forward"]["bytes"] = moved
        assert len(differences(before, after)[0]) == expected, "a percent is no news"
    new = {"torch": "2.13.0", "subjects": {"b": {}}}
    assert differences(before, new)[0] == ["b is not recorded"]
    assert differences(before, {"torch": "2.13.0", "subjects": {"op sparse TP1": {}}}) == ([], []), "depends on data"


def test_views_launch_nothing_and_bytes_are_those_moved():
    x, small = empty(100, 10), empty(10)
    found = counted(lambda: x.t()[3:].reshape(7, 10, 10).unsqueeze(0).expand(2, -1, -1, -1))
    assert found.launches == 0
    found = counted(lambda: x + small)
    assert found.operators == {"add": 1} and found.bytes == {"add": 4 * (1000 + 10 + 1000)}
    found = counted(lambda: x.copy_(small.expand(100, 10)))
    assert found.bytes == {"copy_": 4 * (10 + 1000)}
    rows = empty(5, dtype=torch.int64)
    found = counted(lambda: x.index_select(0, rows))
    assert found.bytes == {"index_select": 5 * 8 + 2 * 4 * 50}
    found = counted(lambda: x.index_copy_(0, rows, empty(5, 10)))
    assert found.bytes["index_copy_"] == 5 * 8 + 2 * 4 * 50
    found = counted(lambda: empty(3, 4) @ empty(4, 5))
    assert found.bytes == {} and found.matmuls == [("mm", 2 * 3 * 4 * 5, 4 * (12 + 20 + 15), 4)]


def test_of_kernels_only_those_outside_the_op_count_bytes():
    block = pytest.importorskip("megatron_fwpkm.ops.memory_block.triton.block_functions")
    op, columns = OpCalls(), SimpleNamespace(size=1, num_columns=16)

    def run() -> None:
        block.TRITON_STEPS.standardize_values(empty(10, 16, dtype=torch.bfloat16), torch.float32, columns)

    with counting(triton=True, op=op) as found:
        run()
    assert found.bytes == {"standardize_kernel": 160 * (2 + 4)}
    with counting(triton=True, op=op) as found:
        op.wrap(run)()
    assert found.kernels == {"standardize_kernel": 1} and not found.bytes


def test_every_kind_of_wait_is_seen():
    x, mask = empty(6), empty(6, dtype=torch.bool)
    waits = {
        "local_scalar_dense": lambda: x.sum().item(),
        "nonzero": mask.nonzero,
        "tolist": x.tolist,
        "mask as an index": lambda: x[mask],
        "masked_select": lambda: x.masked_select(mask),
        "copy between host and device": x.cpu,
        "equal": lambda: torch.equal(x, x),
    }
    assert {name: counted(function).waits for name, function in waits.items()} == {name: {name: 1} for name in waits}
    assert counted(lambda: x.__setitem__(mask, 0.0)).waits == {}, "this is a fill"
    assert counted(lambda: x.__setitem__(mask, empty(6))).waits == {"mask as an index": 1}
    assert counted(lambda: x.copy_(torch.ones(6))).waits == {"copy between host and device": 1}


def test_tensors_without_data_are_on_cuda():
    with counting(triton=False):
        assert empty(1).is_cuda and not torch.ones(1).is_cuda
    assert not empty(1).is_cuda


def test_without_triton_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    asked = []

    def count_all(implementations: list[str], *, quick: bool) -> dict[str, object]:
        asked.append(implementations)
        return {"torch": "2.13.0", "subjects": {}}

    monkeypatch.setattr(launches, "find_spec", lambda _: None)
    monkeypatch.setattr(launches, "count_all", count_all)
    arguments = Namespace(implementations=None, quick=True, check=True, record=RECORD, repeats=1, output=tmp_path)
    launches.run(arguments, "a test")
    assert asked == [["sparse"]] and "triton is not installed" in capsys.readouterr().err


SMALL = {"batch": 1, "tokens": 48, "num_subkeys": 16, "key_dim": 128, "value_dim": 16, "topk": 4, "chunk_size": 16}
"""As small as can be, but for halves of queries whose sub-keys are finished by the kernel that sums their readers."""


@needs_triton
@pytest.mark.parametrize("ranks", [1, 2])
def test_counts_do_not_depend_on_sizes(ranks: int) -> None:
    subject, shape = Subject("op", "triton", ranks=ranks), paper_shape(3)
    small, paper = count_op(subject, replace(shape, **SMALL)), count_op(subject, shape)
    for phase in ("forward", "backward"):
        assert small[phase].kernels == paper[phase].kernels and small[phase].operators == paper[phase].operators


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_counts_do_not_depend_on_data(ranks: int) -> None:
    """Small tensors with data, whose kernels run in Triton's interpreter, against the paper's shape without data."""
    subject, shape = Subject("op", "triton", ranks=ranks), paper_shape(3)
    call, inputs = op_call(subject, replace(shape, **SMALL), "cpu")
    with counting(triton=True, run=True) as forward:
        output = call()
    direction = torch.ones_like(output)
    with counting(triton=True, run=True) as backward:
        torch.autograd.grad(output, inputs, direction)
    without = count_op(subject, shape)
    for phase, found in {"forward": forward, "backward": backward}.items():
        assert found.kernels == without[phase].kernels and not found.waits and not without[phase].waits
        if ranks > 1:
            continue  # On a CPU the readers of sub-keys that processes share are sorted by NumPy.
        # On a CPU a number is assigned by `fill_`, without data by a copy.
        numbers = found.operators["fill_"]
        assert found.operators + Counter(copy_=numbers) - Counter(fill_=numbers) == without[phase].operators


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("what", ["op", "layer"])
def test_the_host_s_time_sees_every_launch(what: str) -> None:
    recorded = json.loads(RECORD.read_text())["data"]["subjects"]
    found = measure(what, "triton", 1)
    name = "op triton TP1" if what == "op" else "layer triton bf16 reset=never TP1"
    assert found["kernels"] == sum(phase["kernels"] for phase in recorded[name].values())
    assert found["forward"] > 0 and found["backward"] > 0
