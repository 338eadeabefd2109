"""A CUDA device that is not there, for rehearsals: programs take the path of a GPU, with tensors on the CPU.

Python runs this file as it starts where its folder is in PYTHONPATH. Whatever names the device `cuda` gets the CPU,
every tensor says `is_cuda`, and Triton's kernels run in its interpreter. So what a program does on a GPU is rehearsed:
its choices, names, arguments, files. Nothing is learnt about kernels as they are compiled, streams, memory or time.
A process with an empty CUDA_VISIBLE_DEVICES sees no device, as with a real one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import types
import unittest
from collections.abc import Callable
from typing import Any

NAME = "pretended CUDA device"


def visible() -> bool:
    """Whether this process is to see the device; megatron_on_cpu goes on replacing what needs a real one."""
    asks = sys._getframe(2).f_globals.get("__name__", "")
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and not asks.endswith(".megatron_on_cpu")


class Event:
    """Of a stream: the wall clock."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = 0.0

    def record(self, *_: Any) -> None:
        """Note the time."""
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""
        return 1e3 * (end.at - self.at)

    def synchronize(self) -> None:
        """Everything has been done already."""


class Stream:
    """The only one there is."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing to begin."""

    def wait_stream(self, *_: Any) -> None:
        """Everything has been done already."""

    def wait_event(self, *_: Any) -> None:
        """Everything has been done already."""

    def synchronize(self) -> None:
        """Everything has been done already."""


class PretendedCuda(types.ModuleType):
    """`torch.cuda`, which keeps its stream when megatron_on_cpu takes it away: checkpoints are copied on it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "current_stream" or "current_stream" not in vars(self) or value(None) is not None:
            super().__setattr__(name, value)


def no_graph(*_: Any, **__: Any) -> None:
    """Skip a test that needs a graph."""
    raise unittest.SkipTest("a graph that is replayed cannot be pretended")


def _graphed(*given: Any, **options: Any) -> Any:
    """Capture as the tests do."""
    import torch

    from tests.layers.pretended_graphs import pretended_graphs

    with pretended_graphs():
        return torch.cuda.make_graphed_callables(*given, **options)


def _context(*_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _pretend(torch: Any) -> None:
    properties = types.SimpleNamespace(
        name=NAME, total_memory=64 << 30, major=9, minor=0, multi_processor_count=132, uuid="0", gcnArchName=""
    )
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: visible(),
        "device_count": lambda: int(visible()),
        "get_device_name": lambda *_: NAME,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (32 << 30, 64 << 30),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "Event": Event, "Stream": Stream, "CUDAGraph": no_graph, "make_graphed_callables": _graphed,
        "current_stream": lambda *_: Stream(), "default_stream": lambda *_: Stream(),
        "stream": _context, "device": lambda *_: _context(), "device_of": lambda *_: _context(),
    }  # fmt: skip
    numbers = ("current_device", "max_memory_allocated", "memory_allocated", "max_memory_reserved", "memory_reserved")
    nothing = (
        *("synchronize", "empty_cache", "reset_peak_memory_stats", "set_device", "manual_seed", "manual_seed_all"),
        *("set_sync_debug_mode", "init", "_lazy_init"),
    )
    # One function for each name: torch's compiler lists them with a rule for each.
    answers |= {name: lambda *_, number=0: number for name in numbers}
    answers |= {name: lambda *_, nothing=None, **__: nothing for name in nothing}
    torch.cuda.__class__ = PretendedCuda
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.Tensor.is_cuda = property(lambda tensor: visible())
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
    profile, cpu = torch.profiler.profile, torch.profiler.ProfilerActivity.CPU
    torch.profiler.profile = lambda **options: profile(**options | {"activities": [cpu]})
    begin = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda *backend, **options: begin(
        *("gloo" if name == "nccl" else name for name in backend),
        **{name: value for name, value in options.items() if name != "device_id"}
        | ({"backend": "gloo"} if options.get("backend") == "nccl" else {}),
    )


def _host_mode(torch: Any) -> Any:
    """A mode under which whatever names the device gets the CPU."""

    def on_host(value: Any) -> Any:
        kind = value.type if isinstance(value, torch.device) else value.split(":")[0] if isinstance(value, str) else ""
        return torch.device("cpu") if kind == "cuda" else value

    class HostMode(torch.overrides.TorchFunctionMode):
        """Tensors of the device are made on the host."""

        def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.cuda:
                return args[0]
            if function is torch.device:  # it keeps its name
                return function(*args, **kwargs or {})
            given = {name: on_host(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
            return function(*map(on_host, args), **given)

    return HostMode()


if os.environ.get("CUDA_VISIBLE_DEVICES") != "":
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    _pretend(torch)
    _host_mode(torch).__enter__()
