"""An interpreter that is out to find mistakes: unwritten memory is NaN, programs run in any order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils import deterministic as fillings

DEVICE = os.environ["TEST_DEVICE"]
"""The device under test, which tests/conftest.py has chosen."""


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, new memory is NaN (or the largest whole number) until it is written."""
    deterministic, filling = torch.are_deterministic_algorithms_enabled(), fillings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    fillings.fill_uninitialized_memory = True  # a training run in this process turns it off
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        fillings.fill_uninitialized_memory = filling


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Inside, the interpreter runs the programs of every launch in another order. Skips the test on a GPU."""
    if DEVICE != "cpu":
        pytest.skip("a GPU has an order of its own")
    from triton.runtime.interpreter import interpreter_builder

    original: Callable[[int, int, int], None] = interpreter_builder.set_grid_idx
    orders: dict[tuple[int, ...], list[int]] = {}

    def set_grid_idx(x: int, y: int, z: int) -> None:
        sizes: Any = tuple(interpreter_builder.grid_dim)
        if sizes not in orders:
            count = sizes[0] * sizes[1] * sizes[2]
            orders[sizes] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        place = orders[sizes][(x * sizes[1] + y) * sizes[2] + z]
        original(place // (sizes[1] * sizes[2]), place // sizes[2] % sizes[1], place % sizes[2])

    interpreter_builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        interpreter_builder.set_grid_idx = original


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Inside, threads launch kernels one after the other: the interpreter cannot run two."""
    if DEVICE != "cpu":
        yield
        return
    from triton.runtime.interpreter import GridExecutor

    launch, lock = GridExecutor.__call__, threading.Lock()

    def wait_and_launch(*args: Any, **kwargs: Any) -> None:
        with lock:
            launch(*args, **kwargs)

    GridExecutor.__call__ = wait_and_launch
    try:
        yield
    finally:
        GridExecutor.__call__ = launch
