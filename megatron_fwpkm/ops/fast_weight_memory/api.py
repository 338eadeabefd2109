"""The public functions of the fast-weight memory (DESIGN section 6); their maths is in this folder's README.

What an argument is stands with `fast_weight_memory`; the other functions name what is different with them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..sharding import TableSharding
from ..state import FastWeightOutput, FastWeightState
from .implementation_choice import choose_implementation
from .memory_call import Call
from .opaque_call import OpaqueCall
from .options import MemoryOptions
from .plain import run_plain
from .reference import run_reference
from .touched_rows import run_chains


def fast_weight_memory(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    state: FastWeightState,
    options: MemoryOptions | None = None,
    *,
    mask: Tensor | None = None,
    **keywords: Any,
) -> FastWeightOutput:
    """Read every token from the memory and write each chunk into it after it was read. Inputs are never modified.

    The fast-weight product key memory of arXiv 2601.00671 (DESIGN section 2; this folder's README derives it). Exactly
    differentiable in queries, targets, gates and the initial tables, through all reads and writes of the call.
    Nothing flows to an earlier call: the returned state is detached.

    B sequences of T tokens share the memory. Tensors have the dtype and device of the sub-keys, float32 or float64.

    Args:
        queries: [B, T, heads, key_dim]; each half is compared with the sub-keys of its half.
        targets: [B, T, value_dim]; what is written for token t is the target of token t + lookahead.
        gates: [B, T] weights of the writes, or None for 1.
        state: the memory before the call; `megatron_fwpkm.ops.FastWeightState` has its shapes.
        options: the memory's numbers and choices, or None to make them from the keywords alone.
        mask: [B, T] of any dtype, 0 where a token must not be written; or None. A masked token still reads, and counts
            as a reader.
        keywords: fields of `megatron_fwpkm.ops.MemoryOptions`, which describes them, such as `topk=8, chunk_size=512`;
            they go before those of `options`.

    Returns:
        Reads, addresses, losses and the new state.

    Raises:
        ValueError: an option is out of its range or does not go with another; shapes, dtypes or devices do not fit the
            tables or the pending tokens; `drop` would lose pending tokens; or `triton` cannot run the call. The
            message says what to do.
    """
    options = _options(options, keywords)
    if torch.compiler.is_compiling():
        return _OPERATOR(queries, targets, gates, mask, state, options)
    call = Call.of_tokens(queries, targets, gates, mask, state, options)
    return _run(call, None, in_place=False)


def fast_weight_memory_(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    state: FastWeightState,
    options: MemoryOptions | None = None,
    *,
    mask: Tensor | None = None,
    sharding: TableSharding | None = None,
    **keywords: Any,
) -> FastWeightOutput:
    """`fast_weight_memory` that writes the tables of `state` in place: no copy of a large table.

    Backward neither reads nor rewinds the tables, so several calls may run forward before the first runs backward.
    The returned state holds the same table tensors and the new pending tokens; the undo log, always exact, takes the
    writes back. Arguments that are not named here are those of `fast_weight_memory`.

    Args:
        state: its tables are overwritten and must not require gradients.
        sharding: collectives for tables that are spread over processes: sub-keys by rows, values and `targets` by
            columns. None when they are whole.

    Returns:
        As `fast_weight_memory`, with `undo_log`.

    Raises:
        ValueError: as `fast_weight_memory`, or a table requires gradients.
    """
    processes, options = 1 if sharding is None else sharding.size, _options(options, keywords)
    _check_writable(state, "fast_weight_memory")
    if torch.compiler.is_compiling() and sharding is None:
        return _OPERATOR.in_place(queries, targets, gates, mask, state, options)
    call = Call.of_tokens(queries, targets, gates, mask, state, options, processes)
    return _run(call, sharding, in_place=True)


def flush_pending(state: FastWeightState, options: MemoryOptions | None = None, **keywords: Any) -> FastWeightOutput:
    """Write the pending tokens whose targets are known, as one smaller chunk. Inputs are never modified.

    For asking a question about a text right after its end. The last `lookahead` tokens keep waiting. Arguments that
    are not named here are those of `fast_weight_memory`, and best the same as in the calls before.

    Args:
        state: the memory with its pending tokens; without any, nothing happens.
        options: `chunk_size`, `boundary` and `write_scale` are without effect: the chunk is what waits, and counts
            exactly the tokens it writes.

    Returns:
        An output with empty reads ([B, 0, ...]), the losses of the write and the new state.

    Raises:
        ValueError: an option is out of its range or does not go with another, the tables do not fit each other, or
            `triton` cannot run the call.
    """
    options = _options(options, {**keywords, "boundary": "carry"})
    if torch.compiler.is_compiling():
        return _OPERATOR(None, None, None, None, state, options)
    return _run(Call.of_pending(state, options), None, in_place=False)


def flush_pending_(
    state: FastWeightState,
    options: MemoryOptions | None = None,
    *,
    sharding: TableSharding | None = None,
    **keywords: Any,
) -> FastWeightOutput:
    """`flush_pending` that writes the tables of `state` in place.

    Arguments that are not named here are those of `flush_pending`.

    Args:
        state: its tables are overwritten and must not require gradients.
        sharding: as in `fast_weight_memory_`.

    Returns:
        As `flush_pending`, with `undo_log`.

    Raises:
        ValueError: as `flush_pending`, or a table requires gradients.
    """
    processes, options = 1 if sharding is None else sharding.size, _options(options, {**keywords, "boundary": "carry"})
    _check_writable(state, "flush_pending")
    if torch.compiler.is_compiling() and sharding is None:
        return _OPERATOR.in_place(None, None, None, None, state, options)
    return _run(Call.of_pending(state, options, processes), sharding, in_place=True)


_OPERATOR = OpaqueCall("megatron_fwpkm::fast_weight_memory", fast_weight_memory, flush_pending)


def _options(options: MemoryOptions | None, keywords: dict[str, Any]) -> MemoryOptions:
    if options is None:
        return MemoryOptions(**keywords)
    return replace(options, **keywords) if keywords else options


def _check_writable(state: FastWeightState, functional_name: str) -> None:
    if state.sub_keys.requires_grad or state.values.requires_grad:
        raise ValueError(
            f"{functional_name}_ cannot write in place to tables that require gradients: detach them, or use "
            f"{functional_name}, which copies them"
        )


def _run(call: Call, sharding: TableSharding | None, *, in_place: bool) -> FastWeightOutput:
    """Do what a call has to do with the implementation it takes."""
    implementation = choose_implementation(call.state, call.options) if call.pieces else "sparse"
    if implementation == "plain" and sharding is not None:
        raise ValueError(
            "implementation='plain' requires whole tables, but these are sharded: use 'sparse' or 'triton'"
        )
    if implementation == "plain":
        return call.run(run_plain, in_place=in_place)
    if implementation == "reference":
        return call.run(partial(run_reference, sharding=sharding), in_place=in_place)
    if implementation == "sparse":
        return call.run(partial(run_chains, sharding=sharding), in_place=in_place)
    # Imported where it runs: triton is missing on most machines without a GPU.
    from .triton.key_steps import TritonKeySteps
    from .triton.value_steps import VALUE_STEPS

    run = partial(run_chains, sharding=sharding, key_steps=TritonKeySteps, value_steps=VALUE_STEPS)
    return call.run(run, in_place=in_place)
