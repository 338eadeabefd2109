"""The memory as its equations say, in dense torch autograd: the oracle, and the honest baseline of the benchmark.

Both inner updates are literal gradient descent: the loss is written down and `torch.autograd.grad` differentiates it
for the whole table. With `create_graph` the outer gradient flows through reads, writes and key updates (DESIGN 2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..product_key.reference import addressing_loss, read_slots
from ..sharding import TableSharding
from ..undo_log import UndoLog
from .chain import mean_over_columns, write_scales
from .memory_call import Call, ChainResult


def run_reference(call: Call, in_place: bool, sharding: TableSharding | None) -> ChainResult:
    """Run all pieces of a call.

    Args:
        call: its tables are those of this process: rows of every list of sub-keys, which are gathered (without
            gradient) and moved as a whole, and columns of the values.
        in_place: write the tables at the end.
        sharding: collectives for tables spread over processes, or None.

    Returns:
        The outputs, and the tables after the call, new tensors unless nothing was written.
    """
    state = call.state
    # Backward of the scores needs the sub-keys as they were.
    sub_keys = state.sub_keys.clone() if in_place else state.sub_keys
    result = _run_pieces(call, sub_keys, sharding)
    if in_place:
        with torch.no_grad():
            state.sub_keys.copy_(result.sub_keys)
            state.values.copy_(result.values)
    return result


def _run_pieces(call: Call, sub_keys: Tensor, sharding: TableSharding | None) -> ChainResult:
    """Run all pieces of a call from these sub-keys, without modifying the tables."""
    stream, values, pieces, options = call.stream, call.state.values, call.pieces, call.options
    outer = torch.is_grad_enabled()
    outputs: list[Tensor] = []
    addresses: list[tuple[Tensor, Tensor]] = []
    squared_errors: list[Tensor] = []
    addressing_losses: list[Tensor] = []
    log = UndoLog([], [], sub_keys.detach() if options.key_lr and any(p.key_stop > p.start for p in pieces) else None)
    weights = stream.write_weights()
    own_rows = slice(None)
    if sharding is not None:
        weights = sharding.copy_to_shards(weights)
        own_rows = slice(sharding.rank * sub_keys.shape[2], (sharding.rank + 1) * sub_keys.shape[2])
        sub_keys = torch.cat(sharding.gather(sub_keys.detach()).unbind(), dim=2)
    for piece, scale in zip(pieces, write_scales(stream, pieces, options), strict=True):
        with torch.enable_grad():
            # Leaves of the inner losses; without an outer graph the history is dropped at every piece.
            keys, table = (x if outer and x.requires_grad else x.detach().requires_grad_() for x in (sub_keys, values))
            queries = stream.queries[:, piece.start : piece.stop]
            indices, slot_weights, halves = read_slots(queries, keys, options.topk, options.score)
            shared = sharding.copy_to_shards(slot_weights) if sharding else slot_weights
            read = (shared.flatten(2).unsqueeze(-1) * F.embedding(indices.flatten(2), table)).sum(2)
            if piece.key_stop > piece.start:
                loss = addressing_loss(halves, piece.key_stop - piece.start)
                addressing_losses.append(loss.detach())
                if options.key_lr:
                    sub_keys = _descend(loss, keys, options.key_lr, outer)
            if piece.num_written:
                shift = slice(piece.start + options.lookahead, piece.write_stop + options.lookahead)
                squares = (read[:, : piece.num_written] - stream.targets[:, shift]).square().sum(-1)
                squares = weights[:, piece.start : piece.write_stop] * squares
                squared_errors.append(squares.detach())
                if options.inner_lr:
                    rows = indices.unique()
                    log.add(rows, values.detach()[rows])
                    counted = indices[:, piece.count_start - piece.start : piece.count_stop - piece.start]
                    counts = torch.bincount(counted.flatten(), minlength=table.shape[0]).clamp(min=1)
                    steps = (scale / counts).unsqueeze(-1)
                    values = _descend(0.5 * squares.sum(), table, steps, outer)
        if not outer:
            sub_keys, values, read, slot_weights = (x.detach() for x in (sub_keys, values, read, slot_weights))
        first = piece.emit_start - piece.start
        outputs.append(read[:, first:])
        addresses.append((indices[:, first:], slot_weights[:, first:]))
    squares = torch.cat([stream.targets.new_zeros(stream.targets.shape[0], 0), *squared_errors], 1)
    return ChainResult(
        torch.cat(outputs, 1),
        torch.cat([indices for indices, _ in addresses], 1),
        torch.cat([slot_weights for _, slot_weights in addresses], 1),
        mean_over_columns(squares, values.shape[1], sharding),
        torch.stack(addressing_losses) if addressing_losses else stream.targets.new_zeros(0),
        sub_keys.detach()[:, :, own_rows],
        values.detach(),
        log,
    )


def _descend(loss: Tensor, table: Tensor, step: Tensor | float, outer: bool) -> Tensor:
    """One step of gradient descent on a whole table; with `outer` it can itself be differentiated."""
    (gradient,) = torch.autograd.grad(loss, table, create_graph=outer, retain_graph=True)
    return table - step * gradient
