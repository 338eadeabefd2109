"""What makes the host wait for a device: reading a number, or a shape that depends on data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "repeat_interleave", "is_nonzero")


class _Operators(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.lstrip("_")
        if name.startswith(WAITING) and name != "nonzero_static":  # which is told the shape
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class _Lists(TorchFunctionMode):
    """On a CPU `tolist` calls no operator; within a backward it is not seen."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            self.found["tolist"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """Counts, by operator, how often the host would wait for a device inside."""
    found: Counter[str] = Counter()
    with _Operators(found), _Lists(found):
        yield found
