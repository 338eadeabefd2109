"""Which implementation a call takes, and why not Triton."""

from __future__ import annotations

import math
import warnings
from functools import cache
from importlib import import_module

from ..state import FastWeightState
from .options import MemoryOptions

MAX_TOPK = 32
"""Most slots per head that the kernels take."""
MAX_PAIRS = 128
"""Most slots per token, over all heads, that the kernels take."""
MAX_SUBKEYS = 4096
"""Most sub-keys per half that the kernels take."""


@cache
def _triton_failure() -> str | None:
    """Why Triton cannot be used at all, or None."""
    try:
        import_module("triton")
    except Exception as error:  # Whatever a broken installation raises.
        return f"triton does not import ({type(error).__name__}: {error}): pip install triton"
    return None


def _is_interpreted() -> bool:
    return bool(import_module("triton").knobs.runtime.interpret)


def triton_obstacle(state: FastWeightState, options: MemoryOptions) -> str | None:
    """What keeps the Triton kernels from running a call, with what to do about it; None when nothing does.

    Args:
        state: the tables, already checked.
        options: the caller's options.
    """
    failure = _triton_failure()
    if failure is not None:
        return failure
    heads, values = state.sub_keys.shape[0], state.values
    num_subkeys = math.isqrt(values.shape[0])
    if not values.is_cuda and not (values.device.type == "cpu" and _is_interpreted()):
        return (
            f"the tables are on {values.device}: move them to a CUDA device, or set TRITON_INTERPRET=1 before Python "
            "starts to run the kernels slowly on the CPU"
        )
    if values.shape[1] % 4:
        return f"value_dim={values.shape[1]} (columns of one process) is not divisible by 4: pad it to one that is"
    if options.topk > MAX_TOPK:
        return f"topk={options.topk} is more than {MAX_TOPK}: lower it"
    if heads * options.topk > MAX_PAIRS:
        return f"heads * topk = {heads} * {options.topk} is more than {MAX_PAIRS}: lower one of them"
    if num_subkeys > MAX_SUBKEYS:
        return f"num_subkeys={num_subkeys} is more than {MAX_SUBKEYS}: lower it"
    if not values.is_contiguous():
        return f"values are not contiguous (strides {values.stride()}): pass values.contiguous()"
    if values.storage_offset() * values.itemsize % 16:
        return (
            f"values begin {values.storage_offset() * values.itemsize} bytes into their storage, no multiple of 16: "
            "pass values.clone()"
        )
    return None


@cache
def _warn_once(obstacle: str) -> None:
    warnings.warn(
        f"the memory runs as implementation='sparse', which is slower here than 'triton': {obstacle}", stacklevel=2
    )


def choose_implementation(state: FastWeightState, options: MemoryOptions) -> str:
    """The implementation of a call by its name. `auto` takes Triton on CUDA, and `sparse` elsewhere.

    Where `auto` cannot take Triton on CUDA it says so once.

    Raises:
        ValueError: `triton` is asked for and cannot run the call.
    """
    if options.implementation == "auto":
        if not state.values.is_cuda:
            return "sparse"
        obstacle = triton_obstacle(state, options)
        if obstacle is None:
            return "triton"
        _warn_once(obstacle)
        return "sparse"
    if options.implementation == "triton":
        obstacle = triton_obstacle(state, options)
        if obstacle is not None:
            raise ValueError(f"implementation='triton' does not support this: {obstacle}; or use implementation='auto'")
    return options.implementation
