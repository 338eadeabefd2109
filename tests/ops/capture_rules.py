"""A mode that fails where a CUDA graph could not be captured or would not replay: see `CaptureRules`."""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counting import Counted, noted_kernels, tensors_of

_WAITING = ("local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "repeat_interleave", "is_nonzero",
            "equal")  # fmt: skip
"""Reads a number, or has a shape that depends on data."""
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
_COPIES = {Tensor.tolist: "tolist", Tensor.cpu: "cpu", Tensor.numpy: "numpy", Tensor.item: "item",
           torch.tensor: "tensor", torch.as_tensor: "as_tensor", Tensor.new_tensor: "new_tensor"}  # fmt: skip
"""Between host and device; on a CPU some of them call no operator."""


class CaptureError(AssertionError):
    """Something that a CUDA graph cannot hold, with the line that does it."""


def _source_line() -> str:
    """The innermost line of the project's own code that runs now."""
    frames = [frame for frame in traceback.extract_stack() if "/megatron_fwpkm/" in frame.filename]
    if not frames:
        return "outside the project"
    return f"{frames[-1].filename.rsplit('/megatron_fwpkm/', 1)[1]}:{frames[-1].lineno}: {frames[-1].line}"


class CaptureRules:
    """Inside, operators and launches are noted, and what would make a host wait for a GPU raises CaptureError.

    A second pass on other numbers must make the same operators, with the same shapes (`assert_replays`).

    Args:
        host: tensors that live on the host also where there is a GPU; what is made of them alone is, too.
    """

    def __init__(self, host: tuple[Tensor, ...] = ()) -> None:
        self.host = list(host)
        self.noted: list[tuple[str, Any]] = []
        self._stack = ExitStack()

    def __enter__(self) -> CaptureRules:
        self._counted = Counted()
        self._stack.enter_context(noted_kernels(self._counted, run=True))
        self._stack.enter_context(_Functions(self))
        self._stack.enter_context(_Operators(self))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()
        for name, grid, arguments in self._counted.arguments:
            shapes = {key: list(x.shape) if isinstance(x, Tensor) else x for key, x in arguments.items()}
            self.noted.append((name, (grid, shapes)))

    def is_on_host(self, value: Any) -> bool:
        """Whether all tensors in a value live on the host."""
        tensors = tensors_of(value)
        return bool(tensors) and all(any(one is other for other in self.host) for one in tensors)

    def refuse(self, what: str) -> None:
        """Raise for an operator."""
        raise CaptureError(f"{what} cannot be in a CUDA graph ({_source_line()})")

    def assert_replays(self, other: CaptureRules) -> None:
        """Fail where the other pass did something else."""
        for mine, theirs in zip(self.noted, other.noted, strict=False):
            assert mine == theirs, f"the operators of a CUDA graph must not depend on data: {mine}, then {theirs}"
        assert len(self.noted) == len(other.noted), "the number of operators must not depend on data"


class _Operators(TorchDispatchMode):
    def __init__(self, rules: CaptureRules) -> None:
        super().__init__()
        self.rules = rules

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        on_host = self.rules.is_on_host(args)
        if not on_host and name.lstrip("_").startswith(_WAITING):
            self.rules.refuse(name)
        if name in _INDEXING and any(index is not None and not index.dtype.is_signed for index in args[1]):
            self.rules.refuse(f"{name} with a mask")
        result = func(*args, **(kwargs or {}))
        if on_host:
            self.rules.host += tensors_of(result)
        else:
            self.rules.noted.append((name, [(list(x.shape), x.stride(), x.dtype) for x in tensors_of(result)]))
        return result


class _Functions(TorchFunctionMode):
    def __init__(self, rules: CaptureRules) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _COPIES and not self.rules.is_on_host(args):
            self.rules.refuse(_COPIES[func])
        return func(*args, **(kwargs or {}))
