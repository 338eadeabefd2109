"""CUDA graphs on the CPU: torch's own `make_graphed_callables` over graphs that note operators and run them again.

A capture notes every operator and every launch of a kernel with the tensors it was given, and a replay runs them on the
same tensors, writing results where they were at capture: nothing else can reach a replay, neither Python nor a number
that the host has read. Unlike on a GPU, a capture also runs what it notes. It fails on what `CaptureRules` refuse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.counting import tensors_of
from megatron_fwpkm.ops.fast_weight_memory import key_rows
from megatron_fwpkm.ops.kernel_forms import KernelForm
from tests.ops.capture_rules import CaptureRules


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class PretendedGraph:
    """In place of `torch.cuda.CUDAGraph`.

    Attributes:
        replays: how often it was replayed.
        made: all graphs.
    """

    made: list[PretendedGraph] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.replays = 0
        self.made.append(self)

    def replay(self) -> None:
        """Run everything again, in place."""
        self.replays += 1
        with torch.no_grad(), _disable_current_modes():
            for call in self.calls:
                call()

    def note(self, func: Any, args: Any, kwargs: Any, results: list[Tensor]) -> None:
        """Add an operator; one that only makes a view or takes memory needs no second run."""
        given = {_storage(tensor) for tensor in (*tensors_of(args), *tensors_of(kwargs))}
        fresh = [number for number, tensor in enumerate(results) if _storage(tensor) not in given]
        if "empty" in func.overloadpacket.__name__ or not (fresh or func._schema.is_mutable):
            return

        def again() -> None:
            found = tensors_of(func(*args, **kwargs))
            for number in fresh:
                results[number].copy_(found[number])

        self.calls.append(again)


class _Capture(TorchDispatchMode):
    def __init__(self, graph: PretendedGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.graph.note(func, args, kwargs or {}, [tensor.detach() for tensor in tensors_of(result)])
        return result


@contextlib.contextmanager
def _capture(graph: PretendedGraph, pool: Any = None) -> Iterator[None]:
    launch = KernelForm.launch

    def noted(form: KernelForm, grid: tuple[int, ...], *records: Any) -> None:
        graph.calls.append(lambda: launch(form, grid, *records))
        launch(form, grid, *records)

    with CaptureRules(), mock.patch.object(KernelForm, "launch", noted), _Capture(graph):
        yield


@contextlib.contextmanager
def pretended_graphs() -> Iterator[list[PretendedGraph]]:
    """Inside, torch captures on the CPU; gives the graphs that are made, forward and backward in turn."""
    PretendedGraph.made = []
    nothing = lambda *_, **__: contextlib.nullcontext()  # noqa: E731
    once = partial(torch.cuda.graphs.make_graphed_callables, num_warmup_iters=1)  # an interpreter is slow
    patches = {"make_graphed_callables": once, "CUDAGraph": PretendedGraph,
               "graph": _capture, "synchronize": nothing, "stream": nothing,
               "Stream": nothing}  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch("torch.cuda.graphs.graph_pool_handle", object))
        # Only a CPU sorts short keys by numpy, which a graph cannot note.
        stack.enter_context(mock.patch.object(key_rows, "sort_key_dtype", lambda _: torch.int32))
        yield PretendedGraph.made
