"""The counters: no figure is higher than recorded, and they count what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks.counting import Counted, counting
from benchmarks.launches import FIGURES, differences

ROOT = Path(__file__).resolve().parents[2]


def counted(function) -> Counted:
    """What a function does on tensors without data."""
    with counting(triton=False) as found:
        function()
    return found


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_nothing_is_higher_than_recorded():
    """In a process of its own: the layer stands in a world of two ranks."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: its kernels cannot be counted")
    command = [sys.executable, "-m", "benchmarks.run", "launches", "--check", "--quick"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr


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
    new = {"torch": "2.13.0", "subjects": {"b": {}}}
    assert differences(before, new)[0] == ["b is not recorded"]


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
    assert found.bytes == {} and found.matmuls == [("mm", 2 * 3 * 4 * 5, 4 * (12 + 20 + 15))]


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
