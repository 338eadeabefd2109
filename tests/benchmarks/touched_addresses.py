"""What kernels really touch: the distinct addresses of every launch in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.counting import Counted


class Touched:
    """Bytes by launch, in the order of `Counted.arguments`."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self._addresses: list[dict[tuple[str, int], list[np.ndarray[Any, Any]]]] = []

    def note(self, way: str, pointers: Any, mask: Any) -> None:
        """One load or store of a program of the launch that was noted last."""
        size = pointers.get_element_ty().primitive_bitwidth // 8
        while len(self._addresses) < len(self.counted.arguments):
            self._addresses.append({})
        touched = np.broadcast_to(pointers.data, np.shape(mask.data))[mask.data]
        self._addresses[-1].setdefault((way, size), []).append(np.atleast_1d(touched).ravel())

    def bytes(self) -> list[int]:
        """Distinct ones that were loaded, and distinct ones that were stored."""
        return [
            sum(size * len(np.unique(np.concatenate(parts))) for (_, size), parts in launch.items())
            for launch in self._addresses
        ]


@contextmanager
def touched_addresses(counted: Counted) -> Iterator[Touched]:
    """Inside, the interpreter's loads and stores are noted; `counted` notes the launches."""
    from triton.runtime.interpreter import interpreter_builder

    touched = Touched(counted)
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

    def noted_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        touched.note("load", pointers, mask)
        return load(pointers, mask, *rest)

    def noted_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        touched.note("store", pointers, mask)
        return store(pointers, value, mask, *rest)

    with (
        mock.patch.object(interpreter_builder, "create_masked_load", noted_load),
        mock.patch.object(interpreter_builder, "create_masked_store", noted_store),
    ):
        yield touched
