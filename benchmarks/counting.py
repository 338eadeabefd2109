"""Counts what a call of the memory would have a GPU do, without one: launches, bytes, and when the host would wait.

Everything runs on tensors without data (torch's device `meta`), at the sizes of real training: they say that they are
on CUDA, so the code takes its way there, and a kernel of Triton is noted instead of run. What would make the host wait
for a number of the device is counted, and gets an answer that keeps as much as possible: a mask that picks rows picks
all of them. On tensors with data the same counters just look on.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = (
    "view _unsafe_view reshape _reshape_alias view_as expand slice select narrow permute transpose t movedim unsqueeze "
    "squeeze split split_with_sizes unbind chunk unfold diagonal as_strided alias detach detach_ lift_fresh set_"
)
_MEMORY = "empty new_empty empty_like empty_strided new_empty_strided resize_ is_same_size is_pinned"
# Tensors without data assign a number by way of a scalar tensor; on CUDA the launch that follows fills it in.
_NUMBERS = "scalar_tensor _local_scalar_dense item is_nonzero"
_NO_LAUNCH = frozenset(f"{_VIEWS} {_MEMORY} {_NUMBERS}".split())
"""Operators that only make another view, take memory or read a number."""

MATMULS = frozenset(("mm", "addmm", "bmm", "baddbmm", "addbmm", "_scaled_mm", "linear"))
_WAITS = frozenset(
    ("nonzero", "unique", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount", "equal",
     "_local_scalar_dense", "is_nonzero")
)  # fmt: skip
_ONLY_WRITTEN = frozenset(("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "arange"))
_GATHERS = frozenset(("index", "index_select", "gather", "embedding", "take_along_dim"))
_SCATTERS = frozenset(("index_put_", "_index_put_impl_", "index_copy_", "index_copy", "scatter_", "index_add_",
                       "scatter_add_", "index_fill_"))  # fmt: skip


@dataclass
class Counted:
    """What was counted.

    Attributes:
        kernels: launches of our kernels by name.
        operators: launches of torch's operators by name, each as one.
        collectives: calls of collectives by name.
        waits: how often the host would wait for the device, by reason.
        bytes: that torch's operators move outside the op (in a count of the op alone, all), matrix products apart, by
            operator; and in a layer kernels outside the op, each of their tensors once.
        moved: (operator, bytes, bytes of a number) of every launch of torch's, matrix products apart.
        matmuls: (operator, floating-point operations, bytes, bytes of a number) of every matrix product.
        arguments: what each kernel was launched with: (name, grid, arguments by name).
    """

    kernels: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    collectives: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    moved: list[tuple[str, int, int]] = field(default_factory=list)
    matmuls: list[tuple[str, int, int, int]] = field(default_factory=list)
    arguments: list[tuple[str, tuple[int, ...], dict[str, Any]]] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Launches in all, without collectives."""
        return sum(self.kernels.values()) + sum(self.operators.values())


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in arguments or results, in their order."""
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for one in values for tensor in tensors_of(one)]


def size_of(tensor: Tensor) -> int:
    """Bytes of the numbers of a tensor; what an expanded one repeats counts once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def bytes_moved(name: str, overload: str, arguments: list[Tensor], results: list[Tensor]) -> int:
    """Bytes that an operator reads and writes, each of its tensors once.

    Args:
        name: such as `copy_`.
        overload: such as `out`.
        arguments: its tensors.
        results: what it returns, among them what it wrote in place.
    """
    if name in _GATHERS:
        # Of the table only what is taken.
        return sum(map(size_of, arguments[1:])) + 2 * sum(map(size_of, results))
    if name in _SCATTERS:
        added = 2 if "add" in name else 1
        rest = sum(map(size_of, arguments[1:]))
        return rest + added * max(map(size_of, arguments[1:]), default=0)
    written = {id(result) for result in results}
    only_written = name in _ONLY_WRITTEN or overload.endswith("out")
    read = [one for one in arguments if not (only_written and id(one) in written)]
    return sum(map(size_of, read)) + sum(map(size_of, results))


def _flops(arguments: list[Tensor], result: Tensor) -> int:
    """Of a matrix product whose second but last tensor is [..., M, K]."""
    return 2 * result.numel() * arguments[-1].shape[-2]


class OpCalls:
    """Knows which operators belong to calls of the op within a layer: in backward by the nodes that autograd runs."""

    def __init__(self) -> None:
        self._running = False
        self._nodes: list[range] = []

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function that calls the op, as one that tells."""

        def called(*args: Any, **kwargs: Any) -> Any:
            """One call."""
            first, self._running = torch.autograd._get_sequence_nr(), True
            try:
                return function(*args, **kwargs)
            finally:
                self._running = False
                self._nodes.append(range(first, torch.autograd._get_sequence_nr()))

        return called

    def is_inside(self) -> bool:
        """Whether an operator that runs now is the op's."""
        node = torch._C._current_autograd_node()
        if node is None:
            return self._running
        return any(node._sequence_nr() in nodes for nodes in self._nodes)


class _Operators(TorchDispatchMode):
    """Counts operators, and answers those that need data."""

    def __init__(self, counted: Counted, op: OpCalls | None) -> None:
        super().__init__()
        self.counted, self.op = counted, op

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, _, name = func.overloadpacket._qualified_op_name.partition("::")
        if space == "c10d":
            self.counted.collectives[name] += 1
            return func(*args, **kwargs)
        arguments = tensors_of(args) + tensors_of(kwargs)
        args = self._note_waits(name, func, args, kwargs, arguments)
        if arguments and arguments[0].is_meta and name in _ANSWERS:
            result = _ANSWERS[name](*arguments)
        elif _copies_to_host(name, kwargs, arguments):
            result = torch.zeros(arguments[-1].shape, dtype=kwargs.get("dtype") or arguments[-1].dtype, device="cpu")
        else:
            result = func(*args, **kwargs)
        if name not in _NO_LAUNCH:
            self._note_launch(name, func._overloadname, arguments, tensors_of(result))
        return result

    def _note_waits(self, name: str, func: Any, args: Any, kwargs: Any, arguments: list[Tensor]) -> Any:
        """Count why the host would wait; returns the arguments, masks replaced by the rows they could pick."""
        waits = self.counted.waits
        if name in _WAITS:
            waits[name.lstrip("_")] += 1
        if name == "repeat_interleave" and kwargs.get("output_size") is None and func._overloadname != "self_int":
            waits[name] += 1
        # What assigns a number to a tensor without data copies a scalar, which on CUDA the launch brings along.
        devices = {tensor.device.type for tensor in arguments if tensor.dim() or name == "_to_copy"}
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if name in ("copy_", "_to_copy") and (len(devices) > 1 or (target and target not in devices and devices)):
            waits["copy between host and device"] += not kwargs.get("non_blocking", False)
        if name in ("index", "index_put_", "_index_put_impl_"):
            masks = [one for one in args[1] if one is not None and one.dtype == torch.bool]
            if masks and not (len(args) > 2 and args[2].numel() == 1):
                waits["mask as an index"] += 1
                if masks[0].is_meta:
                    return (args[0], _all_rows(args[1]), *args[2:])
        return args

    def _note_launch(self, name: str, overload: str, arguments: list[Tensor], results: list[Tensor]) -> None:
        self.counted.operators[name] += 1
        moved = bytes_moved(name, overload, arguments, results)
        if name in MATMULS:
            product = name, _flops(arguments, results[0]), moved, results[0].element_size()
            self.counted.matmuls.append(product)
            return
        self.counted.moved.append((name, moved, arguments[0].element_size() if arguments else 0))
        if self.op is None or not self.op.is_inside():
            self.counted.bytes[name] += moved


def _copies_to_host(name: str, kwargs: dict[str, Any], arguments: list[Tensor]) -> bool:
    """Whether data is asked for that is not there."""
    target = kwargs.get("device")
    return name == "_to_copy" and target is not None and arguments[0].is_meta and torch.device(target).type == "cpu"


def _all_rows(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices with every mask replaced by the numbers of all its entries."""
    result: list[Tensor | None] = []
    for one in indices:
        if one is not None and one.dtype == torch.bool:
            result += [torch.empty(one.numel(), dtype=torch.int64, device="meta")] * one.dim()
        else:
            result.append(one)
    return result


_ANSWERS: dict[str, Callable[..., Any]] = {
    "_local_scalar_dense": lambda x: {torch.bool: True}.get(x.dtype, 1.0 if x.is_floating_point() else 1),
    "nonzero": lambda x: x.new_empty(x.numel(), x.dim(), dtype=torch.int64),
    "masked_select": lambda x, mask: x.new_empty(x.numel()),
    "equal": lambda x, y: True,
}
"""Answers of operators that tensors without data cannot give: everything is there."""


class _Functions(TorchFunctionMode):
    """Tensors without data are on CUDA, and `tolist`, which on a CPU calls no operator, is seen."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _IS_CUDA and args[0].is_meta:
            return True
        if func is Tensor.tolist:
            self.counted.waits["tolist"] += 1
            if args[0].is_meta:
                return torch.ones(args[0].shape, dtype=args[0].dtype).tolist()
        return func(*args, **(kwargs or {}))


_IS_CUDA = Tensor.is_cuda.__get__  # type: ignore[attr-defined]


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """Torch's, which does not know tensors without data."""
    return _AUTOCAST("cpu" if device_type == "meta" else device_type, *args, **kwargs)


_AUTOCAST = torch.autocast


@contextmanager
def noted_kernels(counted: Counted, *, run: bool, op: OpCalls | None = None) -> Iterator[None]:
    """Inside, every launch of a kernel is noted, and run only where asked for; of those outside the op the bytes, too.

    A launch that does not go through `KernelForm` is noted, too, for it must go through Triton.
    """
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.jit import JITFunction

    from megatron_fwpkm.ops.kernel_forms import KernelForm

    originals = {"form": KernelForm.launch, "compiled": JITFunction.run, "interpreted": GridExecutor.__call__}
    inside = [False]

    def noted(name: str, grid: Any, arguments: dict[str, Any], launch: Any) -> None:
        """Note the outermost."""
        if not inside[0]:
            counted.kernels[name] += 1
            counted.arguments.append((name, tuple(grid), arguments))
            if op is not None and not op.is_inside():
                counted.bytes[name] += sum(map(size_of, tensors_of(arguments)))
        if run:
            before, inside[0] = inside[0], True
            try:
                with torch.utils._python_dispatch._disable_current_modes():
                    launch()
            finally:
                inside[0] = before

    def form(self: Any, grid: Any, *records: Any) -> None:
        """In place of `KernelForm.launch`."""
        known = {key: value for record in records for key, value in record.items()} | dict(self.constants)
        arguments = {key: known[key] for key in self.kernel.arg_names}
        noted(self.kernel.fn.__name__, grid, arguments, lambda: originals["form"](self, grid, *records))

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """In place of `JITFunction.run`."""
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        original = originals["compiled"]
        noted(self.fn.__name__, grid, arguments, lambda: original(self, *args, grid=grid, warmup=warmup, **kwargs))

    def interpreted(self: Any, *args: Any, **kwargs: Any) -> None:
        """In place of the interpreter's launch."""
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        original = originals["interpreted"]
        noted(self.fn.__name__, self.grid, arguments, lambda: original(self, *args, **kwargs))

    with (
        mock.patch.object(KernelForm, "launch", form),
        mock.patch.object(JITFunction, "run", compiled),
        mock.patch.object(GridExecutor, "__call__", interpreted),
    ):
        yield


@contextmanager
def counting(*, triton: bool, run: bool = False, op: OpCalls | None = None) -> Iterator[Counted]:
    """Counts what is done inside.

    Args:
        triton: note the launches of kernels; without, triton need not be installed.
        run: run them, on tensors with data.
        op: the op's calls, whose bytes are left out.
    """
    counted = Counted()
    with ExitStack() as stack:
        nothing = lambda *_: contextlib.nullcontext()  # noqa: E731
        for name in ("device_of", "device"):
            stack.enter_context(mock.patch.object(torch.cuda, name, nothing))
        stack.enter_context(mock.patch.object(torch, "autocast", _autocast))
        if triton:
            stack.enter_context(noted_kernels(counted, run=run, op=op))
        stack.enter_context(_Functions(counted))
        stack.enter_context(_Operators(counted, op))
        yield counted
