"""Full float32 for the memory, whatever autocast and tf32 settings surround the model. Ships inside exports."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` without autocast and without tf32: scores near a key need every digit of float32.

    The device is that of its first tensor argument.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(value.device for value in args if isinstance(value, Tensor))
        allowed = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.autocast(device.type, enabled=False):
                return function(*args, **kwargs)
        finally:
            torch.set_float32_matmul_precision(allowed)

    return run
