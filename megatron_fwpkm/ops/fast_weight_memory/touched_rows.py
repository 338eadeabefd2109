"""The memory on touched rows only: the key chain of all pieces, then the value chain, each one autograd function.

Inside, rows are (token, sequence) pairs with time first, so that every piece is a contiguous range of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sharding import TableSharding
from ..undo_log import UndoLog
from .arguments import Stream
from .calls import ChainResult
from .chain import Chains, mean_over_columns, write_scales
from .chunk_pieces import Piece
from .key_chain import KeyChain, KeyOptions, KeyPiece
from .key_rows import KeyRows
from .options import MemoryOptions
from .sparse.value_steps import VALUE_STEPS
from .value_chain import ValueChain, ValueLog, ValueOptions
from .write_plan import ValuePiece, make_write_plan

TORCH_CHAINS = Chains(KeyChain, VALUE_STEPS)
"""What ``implementation="sparse"`` is made of."""


def run_chains(
    stream: Stream,
    sub_keys: Tensor,
    values: Tensor,
    pieces: list[Piece],
    options: MemoryOptions,
    sharding: TableSharding | None,
    chains: Chains = TORCH_CHAINS,
    *,
    in_place: bool,
    rounding: Tensor | None = None,
) -> ChainResult:
    """Run all pieces of a call.

    Args:
        stream: the tokens.
        sub_keys: [heads, 2, num_subkeys, key_dim / 2] or this process's rows of every list.
        values: [num_slots, value_dim] or this process's columns.
        pieces: what is read and written when.
        options: the caller's options.
        sharding: collectives for tables spread over processes, or None.
        chains: what computes them, torch or Triton.
        in_place: write ``sub_keys`` and ``values``; otherwise they are copied once.
        rounding: [3] int64, what the rounding of bfloat16 values depends on; None for other values.

    Returns:
        The outputs and the tables after the call.
    """
    batch, _, heads, _ = stream.queries.shape
    # [B, S, heads, 2, h] -> [heads * 2, S * B, h]
    halves = stream.queries.unflatten(-1, (2, -1)).permute(2, 3, 1, 0, 4).flatten(2, 3).flatten(0, 1)
    key_pieces = [KeyPiece(p.start * batch, p.stop * batch, p.key_stop * batch) for p in pieces]
    moves_keys = bool(options.key_lr) and any(piece.key_stop > piece.start for piece in pieces)
    # Backward needs the sub-keys as they were; they are small.
    initial_keys = sub_keys.clone() if in_place and moves_keys else sub_keys
    key_options = KeyOptions(
        options.topk, options.score, options.key_lr, key_pieces, KeyRows(sub_keys.shape[2], sharding)
    )
    scores, slots, moved, addressing_loss = chains.key_chain.apply(halves, initial_keys.flatten(0, 1), key_options)
    slot_weights = scores.softmax(-1)
    weights = stream.write_weights()
    shared_weights = slot_weights
    if sharding is not None:
        shared_weights, weights = sharding.copy_to_shards(slot_weights), sharding.copy_to_shards(weights)
    value_pieces = _value_pieces(pieces, batch)
    log = ValueLog() if in_place else None
    writes = any(piece.num_written for piece in pieces)
    table = values.detach() if in_place or not writes or not options.inner_lr else values.detach().clone()
    if writes or torch.is_grad_enabled():
        scales = write_scales(stream, pieces, options)
        shift = options.lookahead * batch
        plan = make_write_plan(slots, value_pieces, values.shape[0])
        steps, frozen = chains.value_steps, not options.inner_lr
        reads, squared_errors = ValueChain.apply(
            values,
            shared_weights,
            weights.transpose(0, 1).reshape(-1),
            stream.targets.transpose(0, 1).flatten(0, 1),
            table,
            ValueOptions(steps, value_pieces, plan, scales, shift, frozen, options.undo_log, rounding),
            log,
        )
    else:
        # As most calls of a decoding loop: nothing is kept.
        reads, squared_errors = chains.value_steps.read_rows(table, slots, slot_weights), slot_weights.new_zeros(0)
    moved = moved.view_as(sub_keys) if moves_keys else sub_keys.detach()
    if in_place and moves_keys:
        sub_keys.copy_(moved)
    return ChainResult(
        _batch_first(reads, batch),
        _batch_first(_emitted(slots, value_pieces), batch).unflatten(-1, (heads, -1)),
        _batch_first(_emitted(slot_weights, value_pieces), batch).unflatten(-1, (heads, -1)),
        _batch_first(mean_over_columns(squared_errors, values.shape[1], sharding), batch),
        addressing_loss,
        moved,
        table,
        _undo_log(log, initial_keys.detach() if moves_keys else None),
    )


def _undo_log(log: ValueLog | None, old_sub_keys: Tensor | None) -> UndoLog | None:
    return None if log is None else UndoLog(log.rows, log.old_values, old_sub_keys, log.in_use)


def _value_pieces(pieces: list[Piece], batch: int) -> list[ValuePiece]:
    """Pieces in rows: reads of all pieces are numbered one after the other (a token may be read by two pieces)."""
    result, start = [], 0
    for piece in pieces:
        positions = (piece.stop, piece.emit_start, piece.write_stop, piece.count_start, piece.count_stop)
        stop, emit, written, count_start, count_stop = (start + (x - piece.start) * batch for x in positions)
        result.append(ValuePiece(start, stop, emit, written, count_start, count_stop, piece.start * batch))
        start = stop
    return result


def _emitted(rows: Tensor, pieces: list[ValuePiece]) -> Tensor:
    """Of all rows read [R, J] those that are returned."""
    if all(piece.emit_start == piece.start for piece in pieces):
        return rows
    return torch.cat([rows[piece.emit_start : piece.stop] for piece in pieces])


def _batch_first(rows: Tensor, batch: int) -> Tensor:
    """[T * B, ...] -> [B, T, ...]."""
    return rows.unflatten(0, (-1, batch)).transpose(0, 1)
