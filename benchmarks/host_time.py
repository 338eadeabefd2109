"""How long the host needs for a call of the memory and for a layer, where a launch costs it nothing but Python.

Run as a module this file is one measurement: Triton gets a driver that launches nothing and kernels that are not
compiled, torch computes on tiny tensors on the CPU, and memory is zero, so that every index is legal. What is left is
what a GPU would wait for: binding arguments, choosing kernels, torch's dispatch. A real launch comes on top of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks.report import ROOT

SIZES: dict[str, Any] = {"tokens": 128, "num_subkeys": 16, "key_dim": 128, "value_dim": 32, "chunk_size": 16}
"""Tiny, with as many chunks as the paper has."""


class NoDriver:
    """A driver of Triton for a GPU that is not there.

    Attributes:
        launches: of kernels, so far.
    """

    def __init__(self) -> None:
        self.launches = 0

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0

    def set_current_device(self, device: int) -> None:
        """Nothing to do."""

    def get_current_target(self) -> Any:
        """An H100 or H200."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def launch(self, *arguments: Any) -> None:
        """Count and do nothing."""
        self.launches += 1

    def compile(self, *arguments: Any, **options: Any) -> Any:
        """What stands for a compiled kernel; it is launched as Triton's own are."""
        from triton.compiler import CompiledKernel

        kernel = CompiledKernel.__new__(CompiledKernel)
        kernel._run, kernel.function, kernel.packed_metadata = self.launch, 0, ()
        kernel.metadata, kernel.module, kernel.name, kernel.src = SimpleNamespace(shared=0), 0, "", None
        return kernel


@contextmanager
def no_gpu() -> Iterator[NoDriver]:
    """Inside, tensors on the CPU are taken for tensors on CUDA, and launches do nothing."""
    import torch

    stub = NoDriver()
    zeros: dict[Any, str] = {torch: "empty", torch.Tensor: "new_empty"}
    with contextlib.ExitStack() as stack:
        patch: Callable[..., Any] = lambda *what: stack.enter_context(mock.patch.object(*what))  # noqa: E731
        if find_spec("triton"):
            import triton
            from triton.runtime.driver import driver

            driver.set_active(stub)
            patch(triton.compiler, "compile", stub.compile)
        patch(torch.Tensor, "is_cuda", property(lambda _: True))
        for name in ("device", "device_of"):
            patch(torch.cuda, name, lambda *_: contextlib.nullcontext())
        for owner, name in zeros.items():
            patch(owner, name, getattr(owner, name.replace("empty", "zeros")))
        patch(torch, "empty_like", torch.zeros_like)
        yield stub


def milliseconds(what: str, implementation: str, repeats: int) -> dict[str, float]:
    """Shortest CPU time of this thread in forward and in backward, and launches of our kernels.

    Args:
        what: `op` or `layer`.
        implementation: `triton` or `sparse`.
        repeats: calls that are timed, after three that are not.
    """
    import torch

    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"forward": [], "backward": []}
    with _prepared(what, implementation) as (forward, inputs), no_gpu() as driver:
        for _ in range(3 + repeats):
            launched, begin = driver.launches, time.thread_time()
            output = forward()
            middle = time.thread_time()
            torch.autograd.grad(output, inputs, output)
            times["forward"].append(middle - begin)
            times["backward"].append(time.thread_time() - middle)
            kernels = driver.launches - launched
    return {phase: 1e3 * min(found[3:]) for phase, found in times.items()} | {"kernels": kernels}


@contextmanager
def _prepared(what: str, implementation: str) -> Iterator[tuple[Callable[[], Any], list[Any]]]:
    """What to time, and what to differentiate by."""
    import torch

    from benchmarks.counted_calls import Subject, layer_config, op_call, paper_shape, world

    shape = replace(paper_shape(1, batch=1), **SIZES)
    subject = Subject(what, implementation, "bf16")
    if what == "op":
        yield op_call(subject, shape, "cpu")
        return
    from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
    from megatron_fwpkm.models.transformer_config import transformer_config

    with world(1):
        config = layer_config(subject, shape)
        layer = FastWeightMemoryLayer(transformer_config(config), config.fwpkm.layer_numbers[0])
        hidden = torch.randn(shape.tokens, 1, config.model.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        yield lambda: layer(hidden), [hidden, *layer.parameters()]


def measure(what: str, implementation: str, repeats: int) -> dict[str, float]:
    """`milliseconds` in a process of its own, whose Triton is not the interpreter.

    Raises:
        RuntimeError: the process failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "benchmarks.host_time", what, implementation, str(repeats)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"the host's time of {what} with {implementation} cannot be measured:\n{result.stderr}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=__doc__)
    parser.add_argument("what", choices=["op", "layer"])
    parser.add_argument("implementation", choices=["triton", "sparse"])
    parser.add_argument("repeats", type=int)
    given = parser.parse_args()
    print(json.dumps(milliseconds(given.what, given.implementation, given.repeats)))
