"""Names for the parts of a step in the traces of a profiler. Where no profiler asks for them, they do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Begin = Callable[[str], AbstractContextManager[Any]]
"""Opens a range of a name, such as `torch.profiler.record_function`."""
_shown_by: list[Begin] = []


def named_range(name: str) -> AbstractContextManager[Any]:
    """What runs inside has this name in a trace."""
    return _shown_by[-1](name) if _shown_by else nullcontext()


@contextmanager
def ranges_shown_by(begin: Begin) -> Iterator[None]:
    """Inside, `begin` opens every range: `torch.profiler.record_function`, or `torch.cuda.nvtx.range` for nsys."""
    _shown_by.append(begin)
    try:
        yield
    finally:
        _shown_by.remove(begin)
