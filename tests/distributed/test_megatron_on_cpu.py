"""The CPU compatibility layer: what it changes, that it changes nothing with CUDA, and that it fits the release."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import megatron.core
import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import random as megatron_random

from megatron_fwpkm.distributed import megatron_on_cpu

_CORE = Path(megatron.core.__file__).parent
# Folders and files whose code runs in our training, and files among them that do not.
_ON_OUR_PATH = (
    "tensor_parallel/*.py",
    "optimizer/*.py",
    "pipeline_parallel/schedules.py",
    "pipeline_parallel/p2p_communication.py",
    "transformer/*.py",
    "distributed/*.py",
    "dist_checkpointing/**/*.py",
    "models/gpt/*.py",
    "models/common/**/*.py",
    "rerun_state_machine.py",
    "utils.py",
)
_OFF_OUR_PATH = {
    "distributed.torch_fully_sharded_data_parallel",
    "optimizer.layer_wise_optimizer",
    "transformer.cuda_graphs",
    "transformer.fsdp_dtensor_checkpoint",
}


@pytest.fixture(autouse=True)
def tracker() -> megatron_random.CudaRNGStatesTracker:
    """A tracker with one state, in place of the process's own for one test."""
    megatron_on_cpu.install()
    tracker = megatron_random.CudaRNGStatesTracker()
    tracker.add("model-parallel-rng", 11)
    return tracker


def test_installing_again_changes_nothing() -> None:
    before = torch.cuda.current_device, torch.Tensor.type, megatron_random.CudaRNGStatesTracker
    assert megatron_on_cpu.install() is True
    assert before == (torch.cuda.current_device, torch.Tensor.type, megatron_random.CudaRNGStatesTracker)


def test_it_is_inactive_where_cuda_exists() -> None:
    program = (
        "import torch; torch.cuda.is_available = lambda: True; original = torch.cuda.current_device\n"
        "from megatron_fwpkm.distributed import megatron_on_cpu\n"
        "assert megatron_on_cpu.install() is False and torch.cuda.current_device is original\n"
        "import sys; assert 'megatron.core' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_every_cuda_literal_on_our_path_is_covered() -> None:
    """A new release may put literals elsewhere: then this list has to follow."""
    files = {file for pattern in _ON_OUR_PATH for file in _CORE.glob(pattern)}
    literal = re.compile(r"device=[\"']cuda[\"']|init_data\(\"cuda\"\)|def init_data")
    found = {
        ".".join(file.relative_to(_CORE).with_suffix("").parts)
        for file in files
        if any(literal.search(line) and "torch.cuda.Stream" not in line for line in file.read_text().splitlines())
    }
    listed = {name.removeprefix("megatron.core.") for name in megatron_on_cpu.MODULES_WITH_CUDA_LITERALS}
    assert found - _OFF_OUR_PATH == listed


def test_megatron_modules_make_cuda_tensors_on_the_cpu() -> None:
    from megatron.core.optimizer import clip_grads

    assert clip_grads.torch.zeros(2, device="cuda").device.type == "cpu"
    assert clip_grads.torch.zeros(2, device=torch.device("cuda", 0), dtype=torch.int).dtype == torch.int
    assert clip_grads.torch.ones(2, device="meta").device.type == "meta"
    assert clip_grads.torch.Tensor is torch.Tensor
    with pytest.raises((AssertionError, RuntimeError), match="CUDA|NVIDIA"):
        torch.zeros(2, device="cuda")  # outside megatron a mistake stays a mistake


def test_nothing_is_pinned_without_a_device() -> None:
    from megatron.core.models.common.embeddings import rope_utils

    assert rope_utils.torch.tensor([1, 2], device="cpu", pin_memory=True).tolist() == [1, 2]


def test_tensors_answer_as_on_the_device() -> None:
    x = torch.zeros(2)
    assert x.cuda() is x and x.cuda(torch.cuda.current_device()) is x
    assert x.type() == "torch.cuda.FloatTensor" and x.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert x.type(torch.float64).dtype == torch.float64 and x.type(dtype=torch.int).dtype == torch.int
    assert torch.cuda.current_device() == torch.device("cpu")
    assert torch.cuda.synchronize() is None and torch.cuda.empty_cache() is None


def test_forks_continue_their_own_stream(
    tracker: megatron_random.CudaRNGStatesTracker, caplog: pytest.LogCaptureFixture
) -> None:
    expected = torch.rand(6, generator=torch.Generator().manual_seed(11))
    torch.manual_seed(5)
    outside = torch.rand(4)
    torch.manual_seed(5)
    with caplog.at_level(logging.WARNING):
        first = torch.rand(2)
        with tracker.fork():
            drawn = [torch.rand(2)]
            with tracker.fork():
                drawn.append(torch.rand(2))
            drawn.append(torch.rand(2))
        second = torch.rand(2)
    assert torch.equal(torch.cat([first, second]), outside), "a fork must not move the outer stream"
    assert torch.equal(torch.cat(drawn), expected)
    assert not caplog.records


def test_unknown_random_state_is_named(tracker: megatron_random.CudaRNGStatesTracker) -> None:
    with pytest.raises(ValueError, match="random state expert is unknown: call model_parallel_cuda_manual_seed"):
        with tracker.fork("expert"):
            pass


def test_recomputed_dropout_draws_the_same_numbers() -> None:
    """Megatron's recompute restores the random state that the patched functions read and set."""
    x = torch.randn(64, requires_grad=True)
    torch.manual_seed(3)
    torch.nn.functional.dropout(x, 0.5).square().sum().backward()
    expected, x.grad = x.grad, None
    torch.manual_seed(3)
    out = tensor_parallel.checkpoint(lambda y: torch.nn.functional.dropout(y, 0.5), False, x)
    torch.rand(1)  # the backward must not depend on where the generator stands by then
    out.square().sum().backward()
    assert torch.equal(x.grad, expected)
