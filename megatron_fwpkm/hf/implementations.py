"""What computes the memory: `plain`, which is at hand, or what an installed megatron_fwpkm brings.

Ships inside exports, which carry `plain` and run without the package.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..ops.fast_weight_memory.memory_call import Call
from ..ops.fast_weight_memory.opaque_call import OpaqueCall
from ..ops.fast_weight_memory.options import MemoryOptions
from ..ops.fast_weight_memory.plain import read_state, run_plain
from ..ops.precision import full_precision
from ..ops.state import FastWeightOutput, FastWeightState

_run_plain = partial(run_plain, can_be_undone=False)


def read_and_write(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    mask: Tensor | None,
    state: FastWeightState,
    options: MemoryOptions,
    *,
    in_place: bool,
) -> FastWeightOutput:
    """Read tokens and write the chunks they complete; `fast_weight_memory` and `fast_weight_memory_` of the package.

    Args:
        queries: [B, T, heads, key_dim].
        targets: [B, T, value_dim].
        gates: [B, T] weights of the writes, or None for 1.
        mask: [B, T], 0 where a token must not be written; or None.
        state: the memory before the call.
        options: the memory's.
        in_place: write the tables of `state` instead of copying them at the first write.

    Returns:
        What was read, and the memory after the call.

    Raises:
        ValueError: the implementation cannot be used here, or does not take these sizes.
    """
    if torch.compiler.is_compiling():
        run = _OPERATOR.in_place if in_place else _OPERATOR
        return run(queries, targets, gates, mask, state, options)
    ops, implementation = implementation_for(options.implementation, state.values.device)
    if ops is None:
        return Call.of_tokens(queries, targets, gates, mask, state, options).run(_run_plain, in_place=in_place)
    function = ops.fast_weight_memory_ if in_place else ops.fast_weight_memory
    keywords = vars(options) | {"implementation": implementation}
    return function(queries, targets, gates, state, mask=mask, **keywords)


def write_pending(state: FastWeightState, options: MemoryOptions, *, in_place: bool) -> FastWeightOutput:
    """Write the waiting tokens whose targets are known, as one smaller chunk; arguments as in `read_and_write`."""
    if torch.compiler.is_compiling():
        run = _OPERATOR.in_place if in_place else _OPERATOR
        return run(None, None, None, None, state, options)
    ops, implementation = implementation_for(options.implementation, state.values.device)
    if ops is None:
        return Call.of_pending(state, options).run(_run_plain, in_place=in_place)
    function = ops.flush_pending_ if in_place else ops.flush_pending
    return function(state, **(vars(options) | {"implementation": implementation}))


def read_only(queries: Tensor, targets: Tensor, tables: FastWeightState, options: MemoryOptions) -> Tensor:
    """What tokens retrieve from tables that stand still, [B, T, value_dim].

    Args:
        queries: [B, T, heads, key_dim].
        targets: [B, T, value_dim].
        tables: the fast weights; tokens that wait are left alone.
        options: the memory's.
    """
    # A chunk that these tokens do not fill, so that nothing is written.
    longer: dict[str, Any] = {"boundary": "carry", "write_scale": "consistent", "chunk_size": queries.shape[1] + 1}
    tables = replace(tables, pending=None)
    if torch.compiler.is_compiling():
        return _OPERATOR(queries, targets, None, None, tables, replace(options, **longer)).retrieved
    ops, implementation = implementation_for(options.implementation, tables.values.device)
    if ops is None:
        with full_precision(tables.values.device):
            return read_state(queries, tables, options).retrieved
    keywords = vars(options) | {"implementation": implementation} | longer
    retrieved: Tensor = ops.fast_weight_memory(queries, targets, None, tables, **keywords).retrieved
    return retrieved


# Every export has one of its own: their code may differ.
_OPERATOR = OpaqueCall(
    f"{re.sub(r'[^a-zA-Z0-9]', '_', __name__)}::fast_weight_memory",
    partial(read_and_write, in_place=False),
    partial(write_pending, in_place=False),
)


def implementation_for(name: str, device: torch.device) -> tuple[Any, str]:
    """Whose functions compute the memory on a device.

    `auto` is `plain` on the CPU, where it is fast enough and its digits do not depend on what is installed; on a GPU
    it is the package's own choice (`triton` where that runs), and `plain` without the package.

    Args:
        name: `auto` or an implementation.
        device: where the tables are.

    Returns:
        The package's room of operations and the implementation in it; None for what is at hand.

    Raises:
        ValueError: the implementation needs the package, which is not installed.
    """
    if name == "plain" or (name == "auto" and (device.type == "cpu" or _package() is None)):
        return None, "plain"
    if _package() is None:
        raise ValueError(
            f"fwpkm_implementation={name!r} needs the package megatron_fwpkm, which is not installed; install it, "
            "or set model.config.fwpkm_implementation to 'plain' or 'auto' before the model is built"
        )
    return _package(), name


@cache
def _package() -> Any:
    """The operations of an installed megatron_fwpkm, or None."""
    try:
        return import_module("megatron_fwpkm.ops")
    except ImportError:
        return None
