"""A test's device is chosen by TEST_DEVICE; and a CUDA device can be pretended, to rehearse what runs on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import conftest

ROOT = Path(__file__).resolve().parents[1]
PRETENDED = """
import os
import torch
from benchmarks import hardware
assert hardware.resolve("auto") == "cuda" and hardware.title("cuda") == "pretended CUDA device"
tensor = torch.ones(2, 3, device="cuda", requires_grad=True)
assert tensor.is_cuda and tensor.new_zeros(2, device="cuda").is_cuda
assert tensor.to("cuda:0", torch.float64).cuda().dtype == torch.float64
assert hardware.time_calls(lambda: tensor.sum().backward(), "cuda", 2)[0] > 0
assert torch.equal(tensor.grad, torch.full((2, 3), 3.0))
module = torch.nn.Linear(2, 2).to(torch.device("cuda", 0)).cuda()
assert module(torch.zeros(1, 2, device="cuda")).is_cuda
from megatron_fwpkm.ops import FastWeightState, MemoryOptions
from megatron_fwpkm.ops.fast_weight_memory.implementation_choice import choose_implementation
state = FastWeightState(torch.zeros(1, 2, 5, 3, device="cuda"), torch.zeros(25, 4, device="cuda"))
assert choose_implementation(state, MemoryOptions(2, chunk_size=8)) == "triton"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
assert not torch.cuda.is_available() and not tensor.is_cuda
assert choose_implementation(state, MemoryOptions(2, chunk_size=8)) == "sparse"
"""


def test_no_gpu_is_visible_unless_it_is_asked_for() -> None:
    assert (os.environ["TEST_DEVICE"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")
    assert os.environ["TRITON_INTERPRET"] == "1" and not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "TEST_DEVICE=cuda, but torch sees no CUDA device"), ("gpu", "TEST_DEVICE=gpu is not known; choose one")],
)
def test_a_device_that_is_not_there_is_refused(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "DEVICE", device)
    with pytest.raises(pytest.UsageError, match=message):
        conftest.pytest_configure()


@pytest.mark.slow
def test_a_pretended_device_is_found_and_used() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    path = f"{ROOT}:{ROOT / 'tests' / 'pretended_cuda'}"
    run = subprocess.run(
        [sys.executable, "-c", PRETENDED], cwd=ROOT, capture_output=True, text=True, timeout=100,
        env={**environment, "PYTHONPATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
