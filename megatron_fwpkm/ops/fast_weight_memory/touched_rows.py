"""The memory on touched rows only: the key chain of all pieces, then the value chain, each one autograd function.

Inside, rows are (token, sequence) pairs with time first, so that every piece is a contiguous range of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..chunk_pieces import Piece
from ..row_overlay import RowOverlay
from ..sharding import TableSharding
from ..undo_log import UndoLog
from .chain import mean_over_columns, write_scales
from .key_chain import KeyChain, KeyOptions, KeyPiece
from .key_rows import KeyRows
from .memory_call import Call, ChainResult
from .sparse.key_steps import SparseKeySteps
from .sparse.value_steps import VALUE_STEPS
from .value_chain import ValueChain, ValueOptions, ValueSteps
from .write_plan import ValuePiece

if TYPE_CHECKING:
    from .key_chain import KeySteps


def run_chains(
    call: Call,
    in_place: bool,
    sharding: TableSharding | None,
    key_steps: type[KeySteps] = SparseKeySteps,
    value_steps: ValueSteps = VALUE_STEPS,
) -> ChainResult:
    """Run all pieces of a call.

    Args:
        call: its tables are those of this process: rows of every list of sub-keys and columns of the values.
        in_place: write the tables; otherwise they are copied once.
        sharding: collectives for tables spread over processes, or None.
        key_steps: what computes the pieces of the sub-keys' chain, in torch or in Triton.
        value_steps: the same for the values.

    Returns:
        The outputs and the tables after the call.
    """
    stream, pieces, options = call.stream, call.pieces, call.options
    sub_keys, values = call.state.sub_keys, call.state.values
    rounding = call.state.rounding if values.dtype == torch.bfloat16 else None
    batch, length, heads, key_dim = stream.queries.shape
    # [B, S, heads, 2, h] -> [heads * 2, S * B, h]
    halves = stream.queries.view(batch, length, heads, 2, key_dim // 2).permute(2, 3, 1, 0, 4)
    halves = halves.reshape(heads * 2, length * batch, key_dim // 2)
    key_pieces = [KeyPiece(p.start * batch, p.stop * batch, p.key_stop * batch) for p in pieces]
    key_rows = KeyRows(sub_keys.shape[2], sharding)
    key_options = KeyOptions(key_steps, options.topk, options.score, options.key_lr, key_pieces, key_rows)
    moves = key_options.moves
    # Backward needs the sub-keys as they were; they are small.
    initial_keys = sub_keys.clone() if in_place and moves else sub_keys
    scores, slots, moved, addressing_loss = KeyChain.apply(halves, initial_keys.flatten(0, 1), key_options)
    slot_weights = scores.softmax(-1)
    weights = stream.write_weights()
    shared_weights = slot_weights
    if sharding is not None:
        shared_weights, weights = sharding.copy_to_shards(slot_weights), sharding.copy_to_shards(weights)
    value_pieces = _value_pieces(pieces, batch)
    log = UndoLog(old_sub_keys=initial_keys.detach() if moves else None) if in_place else None
    writes = any(piece.written for piece in value_pieces)
    changes, overlay = writes and bool(options.inner_lr), call.state.overlay
    if overlay is not None:
        rows, table, values, overlay = _overlaid_rows(overlay, slots, changes, in_place)
    else:
        rows, table = slots, values.detach() if in_place or not changes else values.detach().clone()
    if writes or torch.is_grad_enabled():
        plan = value_steps.plan_writes(rows, value_pieces, table.shape[0])
        scales, shift = write_scales(stream, pieces, options), options.lookahead * batch
        frozen = not options.inner_lr
        reads, squared_errors = ValueChain.apply(
            values,
            shared_weights,
            weights.transpose(0, 1).reshape(-1),
            stream.targets.transpose(0, 1).flatten(0, 1),
            table,
            ValueOptions(value_steps, value_pieces, plan, scales, shift, frozen, options.undo_log, rounding),
            log,
        )
    else:
        # As most calls of a decoding loop: nothing is kept.
        reads, squared_errors = value_steps.read_rows(table, rows, slot_weights), slot_weights.new_zeros(0)
    moved = moved.view_as(sub_keys) if moves else sub_keys.detach()
    if in_place and moves:
        sub_keys.copy_(moved)
    return ChainResult(
        _batch_first(reads, batch),
        _batch_first(_emitted(slots, value_pieces), batch, heads),
        _batch_first(_emitted(slot_weights, value_pieces), batch, heads),
        _batch_first(mean_over_columns(squared_errors, values.shape[1], sharding), batch),
        addressing_loss,
        moved,
        table if overlay is None else call.state.values,
        log,
        overlay,
    )


def _overlaid_rows(
    overlay: RowOverlay, slots: Tensor, changes: bool, in_place: bool
) -> tuple[Tensor, Tensor, Tensor, RowOverlay]:
    """What takes the place of slots and table in a memory whose rows lie over a base.

    Returns:
        Rows [T, J] of the slots in the table; the table to write, [U, D]; the same before the call, differentiable
        towards the base; and the overlay after the call.
    """
    if not changes:
        table = overlay.gather(slots.flatten())
        return torch.arange(slots.numel(), device=slots.device).view_as(slots), table.detach(), table, overlay
    overlay = overlay if in_place else overlay.copy()
    start = len(overlay)
    rows = overlay.own(slots)
    return rows, overlay.table, overlay.initial_rows(start), overlay


def _value_pieces(pieces: list[Piece], batch: int) -> list[ValuePiece]:
    """Pieces in rows: reads of all pieces are numbered one after the other (a token may be read by two pieces)."""
    result: list[ValuePiece] = []
    start = first_read = first_error = write = 0
    for number, piece in enumerate(pieces):
        positions = (piece.stop, piece.emit_start, piece.write_stop, piece.count_start, piece.count_stop)
        stop, emit, written, count_start, count_stop = (start + (x - piece.start) * batch for x in positions)
        rows = start, stop, emit, written, count_start, count_stop, piece.start * batch
        result.append(ValuePiece(*rows, number, first_read, first_error, write))
        first_read += stop - emit
        first_error += written - start
        write += written > start
        start = stop
    return result


def _emitted(rows: Tensor, pieces: list[ValuePiece]) -> Tensor:
    """Of all rows read [T, J] those that are returned."""
    if all(piece.emit_start == piece.start for piece in pieces):
        return rows
    return torch.cat([rows[piece.emit_start : piece.stop] for piece in pieces])


def _batch_first(rows: Tensor, batch: int, *heads: int) -> Tensor:
    """[T * B, ...] -> [B, T, ...]; with a number of heads [T * B, heads * k] -> [B, T, heads, k]."""
    last = (*heads, rows.shape[1] // heads[0]) if heads else rows.shape[1:]
    return rows.view(rows.shape[0] // batch, batch, *last).transpose(0, 1)
