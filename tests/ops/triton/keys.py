"""Queries, sub-keys and what is known about their addressing; and an interpreter that is out to find mistakes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.ops.product_key.selection import KeptSubKeys, exact_costs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers on the device under test."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def draw_integers(seed: int, low: int, high: int, *shape: int) -> Tensor:
    """Whole numbers in [low, high], as float64, whose arithmetic is exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(DEVICE, torch.float64)


def rank_all(queries: Tensor, sub_keys: Tensor, topk: int, score: str) -> KeptSubKeys:
    """The topk best of all sub-keys in float64 by a stable sort: the oracle of the selection."""
    costs = exact_costs(queries.double(), sub_keys.double().unsqueeze(1), score)
    costs, order = costs.sort(dim=-1, stable=True)
    return KeptSubKeys(order[..., :topk], costs[..., :topk])


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, new memory is NaN (or the largest whole number) until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


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
