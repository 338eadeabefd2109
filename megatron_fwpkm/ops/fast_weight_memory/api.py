"""The public functions of the fast-weight memory (DESIGN section 6); their maths is in this folder's README.

What an argument is stands with :func:`fast_weight_memory`; the other functions name what is different with them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..sharding import TableSharding
from ..state import FastWeightOutput, FastWeightState
from .arguments import MemoryOptions, Stream, check_tables, make_stream
from .chain import ChainResult
from .chunk_pieces import (
    Piece,
    carry_schedule,
    drop_schedule,
    flush_schedule,
    official_schedule,
)
from .implementation_choice import choose_implementation
from .precision import full_precision
from .reference import run_reference
from .touched_rows import TORCH_CHAINS, run_chains


def fast_weight_memory(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    state: FastWeightState,
    *,
    topk: int,
    chunk_size: int,
    lookahead: int = 1,
    inner_lr: float = 1.0,
    addressing_weight: float = 1.0,
    score: str = "idw",
    mask: Tensor | None = None,
    boundary: str = "drop",
    write_scale: str = "consistent",
    implementation: str = "auto",
    undo_log: str = "fp32",
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
        state: the memory before the call; :class:`~megatron_fwpkm.ops.FastWeightState` has its shapes.
        topk: slots read per head, at most the sub-keys of a half.
        chunk_size: tokens per write and sequence.
        lookahead: distance from a query to its target, in tokens; at least 0, and below ``chunk_size`` where the last
            tokens of a chunk are not written.
        inner_lr: step size of both inner updates; 0 freezes the memory (pending tokens are still kept up).
        addressing_weight: weight of the addressing loss, which moves the sub-keys; 0 keeps them still.
        score: of a query's half and a sub-key: ``idw``, -log(1e-3 + squared distance), or ``dot_product``.
            as a reader.
        mask: [B, T] of any dtype, 0 where a token must not be written; or None. A masked token still reads, and counts
            as a reader.
        boundary: ``drop``: the last ``lookahead`` tokens of a chunk are never written. ``carry``: they wait in
            ``state.pending`` and the result does not depend on how a text is cut into calls.
        write_scale: ``consistent``, or ``official`` for the authors' streaming arithmetic (``carry`` only).
        implementation: ``reference`` (dense autograd), ``sparse`` (touched rows only), ``triton`` (the same in GPU
            kernels) or ``auto`` (``triton`` on CUDA, ``sparse`` elsewhere).
        undo_log: what is kept of overwritten rows until backward. ``fp32``: all of them, as they were. ``bf16``: the
            same, rounded: half the memory, and slot weights get an approximate gradient. ``recompute``: every slot's
            first value, from which backward repeats all reads and writes exactly. Nothing to ``reference``.

    Returns:
        Reads, addresses, losses and the new state.

    Raises:
        ValueError: an option is out of its range or does not go with another; shapes, dtypes or devices do not fit the
            tables or the pending tokens; ``drop`` would lose pending tokens; or ``triton`` cannot run the call. The
            message says what to do.
    """
    options = MemoryOptions(
        topk, chunk_size, lookahead, inner_lr, addressing_weight, score, boundary, write_scale, implementation, undo_log
    )
    check_tables(state, options)
    stream = make_stream(queries, targets, gates, mask, state, boundary)
    return _run(stream, state, options, *_schedule(stream, options))


def fast_weight_memory_(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    state: FastWeightState,
    *,
    topk: int,
    chunk_size: int,
    lookahead: int = 1,
    inner_lr: float = 1.0,
    addressing_weight: float = 1.0,
    score: str = "idw",
    mask: Tensor | None = None,
    boundary: str = "drop",
    write_scale: str = "consistent",
    implementation: str = "auto",
    undo_log: str = "fp32",
    sharding: TableSharding | None = None,
) -> FastWeightOutput:
    """:func:`fast_weight_memory` that writes the tables of ``state`` in place: no copy of a large table.

    Backward neither reads nor rewinds the tables, so several calls may run forward before the first runs backward.
    The returned state holds the same table tensors and the new pending tokens; the undo log, always exact, takes the
    writes back. Arguments that are not named here are those of :func:`fast_weight_memory`.

    Args:
        state: its tables are overwritten and must not require gradients.
        sharding: collectives for tables that are spread over processes: sub-keys by rows, values and ``targets`` by
            columns. None when they are whole.

    Returns:
        As :func:`fast_weight_memory`, with ``undo_log``.

    Raises:
        ValueError: as :func:`fast_weight_memory`, or a table requires gradients.
    """
    options = MemoryOptions(
        topk, chunk_size, lookahead, inner_lr, addressing_weight, score, boundary, write_scale, implementation, undo_log
    )
    check_tables(state, options, 1 if sharding is None else sharding.size)
    _check_writable(state, "fast_weight_memory")
    stream = make_stream(queries, targets, gates, mask, state, boundary)
    return _run_(stream, state, options, *_schedule(stream, options), sharding)


def flush_pending(
    state: FastWeightState,
    *,
    topk: int,
    chunk_size: int,
    lookahead: int = 1,
    inner_lr: float = 1.0,
    addressing_weight: float = 1.0,
    score: str = "idw",
    write_scale: str = "consistent",
    implementation: str = "auto",
) -> FastWeightOutput:
    """Write the pending tokens whose targets are known, as one smaller chunk. Inputs are never modified.

    For asking a question about a text right after its end. The last ``lookahead`` tokens keep waiting. Arguments that
    are not named here are those of :func:`fast_weight_memory`, and best the same as in the calls before.

    Args:
        state: the memory with its pending tokens; without any, nothing happens.
        chunk_size: checked, but without effect: the chunk is what waits.
        write_scale: without effect: the chunk counts exactly the tokens it writes.

    Returns:
        An output with empty reads ([B, 0, ...]), the losses of the write and the new state.

    Raises:
        ValueError: an option is out of its range or does not go with another, the tables do not fit each other, or
            ``triton`` cannot run the call.
    """
    options = MemoryOptions(
        topk, chunk_size, lookahead, inner_lr, addressing_weight, score, "carry", write_scale, implementation
    )
    check_tables(state, options)
    stream = _pending_stream(state)
    return _run(stream, state, options, *flush_schedule(state.num_pending, lookahead))


def flush_pending_(
    state: FastWeightState,
    *,
    topk: int,
    chunk_size: int,
    lookahead: int = 1,
    inner_lr: float = 1.0,
    addressing_weight: float = 1.0,
    score: str = "idw",
    write_scale: str = "consistent",
    implementation: str = "auto",
    sharding: TableSharding | None = None,
) -> FastWeightOutput:
    """:func:`flush_pending` that writes the tables of ``state`` in place.

    Arguments that are not named here are those of :func:`flush_pending`.

    Args:
        state: its tables are overwritten and must not require gradients.
        sharding: as in :func:`fast_weight_memory_`.

    Returns:
        As :func:`flush_pending`, with ``undo_log``.

    Raises:
        ValueError: as :func:`flush_pending`, or a table requires gradients.
    """
    options = MemoryOptions(
        topk, chunk_size, lookahead, inner_lr, addressing_weight, score, "carry", write_scale, implementation
    )
    check_tables(state, options, 1 if sharding is None else sharding.size)
    _check_writable(state, "flush_pending")
    stream = _pending_stream(state)
    return _run_(stream, state, options, *flush_schedule(state.num_pending, lookahead), sharding)


def _check_writable(state: FastWeightState, functional_name: str) -> None:
    if state.sub_keys.requires_grad or state.values.requires_grad:
        raise ValueError(
            f"{functional_name}_ writes the tables in place and they require gradients: detach them, or use "
            f"{functional_name}, which copies them"
        )


def _schedule(stream: Stream, options: MemoryOptions) -> tuple[list[Piece], int]:
    new_tokens = stream.num_tokens - stream.num_pending
    if options.boundary == "drop":
        return drop_schedule(new_tokens, options.chunk_size, options.lookahead), stream.num_tokens
    schedule: Callable[[int, int, int, int], tuple[list[Piece], int]]
    schedule = official_schedule if options.write_scale == "official" else carry_schedule
    return schedule(stream.num_pending, new_tokens, options.chunk_size, options.lookahead)


def _pending_stream(state: FastWeightState) -> Stream:
    """All pending tokens as the stream of a call without new ones."""
    if state.pending is None:
        heads, _, _, half_dim = state.sub_keys.shape
        queries = state.sub_keys.new_zeros(1, 0, heads, 2 * half_dim)
        return Stream(queries, state.sub_keys.new_zeros(1, 0, state.values.shape[1]), None, None, 0)
    pending = state.pending
    return Stream(pending.queries, pending.targets, pending.gates, pending.mask, pending.num_tokens)


def _run(
    stream: Stream, state: FastWeightState, options: MemoryOptions, pieces: list[Piece], waiting: int
) -> FastWeightOutput:
    if not pieces:
        return _nothing(stream, state, options)
    implementation = choose_implementation(state, options)
    with full_precision(state.values.device):
        if implementation == "reference":
            result = run_reference(stream, state.sub_keys, state.values, pieces, options, None)
        else:
            result = _run_touched_rows(implementation, stream, state, pieces, options, None, in_place=False)
    rounding = None if state.rounding is None else _count_writes_(state.rounding.clone(), pieces, options)
    new_state = FastWeightState(result.sub_keys, result.values, stream.tail(waiting), rounding)
    return FastWeightOutput(*result[:5], new_state)


def _run_(
    stream: Stream,
    state: FastWeightState,
    options: MemoryOptions,
    pieces: list[Piece],
    waiting: int,
    sharding: TableSharding | None,
) -> FastWeightOutput:
    if not pieces:
        return _nothing(stream, state, options)
    implementation = choose_implementation(state, options)
    with full_precision(state.values.device):
        if implementation == "reference":
            # Backward of the scores needs the sub-keys as they were.
            result = run_reference(stream, state.sub_keys.clone(), state.values, pieces, options, sharding)
            with torch.no_grad():
                state.sub_keys.copy_(result.sub_keys)
                state.values.copy_(result.values)
        else:
            result = _run_touched_rows(implementation, stream, state, pieces, options, sharding, in_place=True)
    if state.rounding is not None:
        _count_writes_(state.rounding, pieces, options)
    new_state = FastWeightState(state.sub_keys, state.values, stream.tail(waiting), state.rounding)
    return FastWeightOutput(*result[:5], new_state, result.undo_log)


def _count_writes_(rounding: Tensor, pieces: list[Piece], options: MemoryOptions) -> Tensor:
    """Add the writes of a call, on the device: a CUDA graph that is replayed goes on counting."""
    if options.inner_lr:
        rounding[1] += sum(piece.num_written > 0 for piece in pieces)
    return rounding


def _run_touched_rows(
    implementation: str,
    stream: Stream,
    state: FastWeightState,
    pieces: list[Piece],
    options: MemoryOptions,
    sharding: TableSharding | None,
    *,
    in_place: bool,
) -> ChainResult:
    rounding = state.rounding if state.values.dtype == torch.bfloat16 else None
    chains = TORCH_CHAINS
    if implementation == "triton":
        # Imported where it runs: triton is missing on most machines without a GPU.
        from .triton.chains import TRITON_CHAINS as chains
    tables = state.sub_keys, state.values
    return run_chains(stream, *tables, pieces, options, sharding, chains, in_place=in_place, rounding=rounding)


def _nothing(stream: Stream, state: FastWeightState, options: MemoryOptions) -> FastWeightOutput:
    """The output of a call that neither reads nor writes."""
    batch, _, heads, _ = stream.queries.shape
    empty = stream.queries.new_zeros(batch, 0, heads, options.topk)
    reads = stream.targets.new_zeros(batch, 0, stream.targets.shape[2])
    return FastWeightOutput(reads, empty.long(), empty, reads.new_zeros(batch, 0), reads.new_zeros(0), state)
