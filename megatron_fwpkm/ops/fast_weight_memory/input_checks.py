"""Checks of everything a caller can get wrong, with errors in the caller's words."""

from __future__ import annotations

import torch
from torch import Tensor

from ..state import FastWeightState
from ..stream import Stream, joined_stream
from .options import MemoryOptions


def check_tables(state: FastWeightState, options: MemoryOptions, processes: int = 1) -> None:
    """Check the tables of `state`, spread over `processes`, against each other and against `topk`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    sub_keys, values = state.sub_keys, state.values
    if sub_keys.ndim != 4 or sub_keys.shape[1] != 2:
        raise ValueError(f"sub_keys must have shape [heads, 2, num_subkeys, key_dim / 2], got {list(sub_keys.shape)}")
    num_subkeys = sub_keys.shape[2] * processes
    if values.ndim != 2 or values.shape[0] != num_subkeys**2:
        raise ValueError(
            f"values must have shape [num_subkeys ** 2, value_dim]: sub_keys of shape {list(sub_keys.shape)}"
            f"{f' on each of {processes} processes' if processes > 1 else ''} have {num_subkeys} "
            f"sub-keys, so values must have {num_subkeys**2} rows, got {list(values.shape)}"
        )
    if options.topk > num_subkeys:
        raise ValueError(f"topk={options.topk} exceeds the number of sub-keys, {num_subkeys}; lower topk")
    if sub_keys.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"sub_keys must be float32 (or float64 for tests), got {sub_keys.dtype}")
    is_half = values.dtype == torch.bfloat16 and sub_keys.dtype == torch.float32
    if (values.dtype != sub_keys.dtype and not is_half) or values.device != sub_keys.device:
        raise ValueError(
            f"sub_keys are {sub_keys.dtype} on {sub_keys.device}, but values are {values.dtype} on {values.device}; "
            "both tables must have the same dtype (or float32 sub_keys and bfloat16 values) and device"
        )
    if is_half:
        _check_rounding(state, options)
    if state.overlay is not None:
        _check_overlay(state, options, processes)


def _check_overlay(state: FastWeightState, options: MemoryOptions, processes: int) -> None:
    assert state.overlay is not None and processes == 1
    if options.implementation == "reference":
        raise ValueError(
            "implementation='reference' requires a whole table, but the state has an overlay: pass "
            "FastWeightState(state.sub_keys, state.whole_values(), state.pending), or use another implementation"
        )
    if state.values.dtype == torch.bfloat16:
        raise ValueError("an overlay requires values in float32 or float64, got bfloat16: pass values.float()")
    if state.overlay.base is not state.values:
        raise ValueError("the overlay of a state lies over another table than its values: make both of one table")


def _check_rounding(state: FastWeightState, options: MemoryOptions) -> None:
    if options.implementation in ("reference", "plain"):
        raise ValueError(
            f"implementation={options.implementation!r} does not support bfloat16 values: use "
            "'sparse' or 'triton', or pass values.float()"
        )
    rounding, device = state.rounding, state.values.device
    if rounding is None or rounding.shape != (3,) or rounding.dtype != torch.int64 or rounding.device != device:
        found = "None" if rounding is None else f"{rounding.dtype} {list(rounding.shape)} on {rounding.device}"
        raise ValueError(
            f"bfloat16 values are rounded stochastically, which requires state.rounding, int64 [3] on {device}, got "
            f"{found}: start with FastWeightState(..., rounding=make_rounding(seed)) and pass on every output's state"
        )


def _check_like(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {meaning} = {list(shape)}, got {list(tensor.shape)}")


def _check_dtype(name: str, tensor: Tensor, sub_keys: Tensor) -> None:
    if tensor.dtype != sub_keys.dtype or tensor.device != sub_keys.device:
        raise ValueError(
            f"{name} are {tensor.dtype} on {tensor.device}, but sub_keys are {sub_keys.dtype} on {sub_keys.device}; "
            f"convert {name} before the call (for example with .to(sub_keys))"
        )


def check_inputs(
    queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None, state: FastWeightState
) -> None:
    """Check the tokens of one call against the tables.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    heads, _, _, half_dim = state.sub_keys.shape
    if queries.ndim != 4 or queries.shape[0] == 0:
        raise ValueError(f"queries must have shape [B, T, heads, key_dim] with B >= 1, got {list(queries.shape)}")
    batch, length = queries.shape[:2]
    _check_like("queries", queries, (batch, length, heads, 2 * half_dim), "[B, T, heads, key_dim] of these sub_keys")
    _check_like("targets", targets, (batch, length, state.values.shape[1]), "[B, T, value_dim]")
    _check_dtype("queries", queries, state.sub_keys)
    _check_dtype("targets", targets, state.sub_keys)
    if gates is not None:
        _check_like("gates", gates, (batch, length), "[B, T]")
        _check_dtype("gates", gates, state.sub_keys)
    if mask is not None:
        _check_like("mask", mask, (batch, length), "[B, T]")
        if mask.device != state.values.device:
            raise ValueError(f"mask is on {mask.device}, but the tables are on {state.values.device}")


def make_stream(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    mask: Tensor | None,
    state: FastWeightState,
    boundary: str,
) -> Stream:
    """Check the tokens of a call and put the pending ones before them.

    Raises:
        ValueError: the tokens do not fit the tables, the pending tokens or the boundary.
    """
    check_inputs(queries, targets, gates, mask, state)
    return joined_stream(queries, targets, gates, mask, state.pending, boundary)


def pending_stream(state: FastWeightState) -> Stream:
    """All pending tokens as the stream of a call without new ones."""
    pending = state.pending
    if pending is None:
        heads, _, _, half_dim = state.sub_keys.shape
        queries = state.sub_keys.new_zeros(1, 0, heads, 2 * half_dim)
        return Stream(queries, state.sub_keys.new_zeros(1, 0, state.values.shape[1]), None, None, 0)
    return Stream(pending.queries, pending.targets, pending.gates, pending.mask, pending.num_tokens)
