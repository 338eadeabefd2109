"""The memory as its equations say, in dense torch autograd: the oracle, and the honest baseline of the benchmark.

Both inner updates are literal gradient descent: the loss is written down and ``torch.autograd.grad`` differentiates it
for the whole table. With ``create_graph`` the outer gradient flows through reads, writes and key updates (DESIGN 2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_fwpkm.ops.fast_weight_memory.arguments import MemoryOptions, Stream
from megatron_fwpkm.ops.fast_weight_memory.chain import ChainResult, mean_over_columns, write_scales, write_weights
from megatron_fwpkm.ops.fast_weight_memory.schedule import Piece
from megatron_fwpkm.ops.product_key.reference import addressing_loss, read_slots
from megatron_fwpkm.ops.sharding import TableSharding
from megatron_fwpkm.ops.undo_log import UndoLog


def run_reference(
    stream: Stream,
    sub_keys: Tensor,
    values: Tensor,
    pieces: list[Piece],
    options: MemoryOptions,
    sharding: TableSharding | None,
) -> ChainResult:
    """Run all pieces of a call, without modifying the tables.

    Args:
        stream: the tokens.
        sub_keys: [heads, 2, num_subkeys, key_dim / 2].
        values: [num_slots, value_dim] or this process's columns.
        pieces: what is read and written when.
        options: the caller's options.
        sharding: collectives for a table spread by columns, or None.

    Returns:
        The outputs, in which ``sub_keys`` and ``values`` are new tensors unless nothing was written.
    """
    outer = torch.is_grad_enabled()
    outputs: list[Tensor] = []
    addresses: list[tuple[Tensor, Tensor]] = []
    squared_errors: list[Tensor] = []
    addressing_losses: list[Tensor] = []
    log_rows: list[Tensor] = []
    log_values: list[Tensor] = []
    old_sub_keys = None
    weights = write_weights(stream)
    weights = sharding.copy_to_shards(weights) if sharding else weights
    for piece, scale in zip(pieces, write_scales(stream, pieces, options), strict=True):
        with torch.enable_grad():
            # Leaves of the inner losses; without an outer graph the history is dropped at every piece.
            keys, table = (x if outer and x.requires_grad else x.detach().requires_grad_() for x in (sub_keys, values))
            queries = stream.queries[:, piece.start : piece.stop]
            indices, slot_weights, halves = read_slots(queries, keys, options.topk, options.score)
            shared = sharding.copy_to_shards(slot_weights) if sharding else slot_weights
            read = (shared.flatten(2).unsqueeze(-1) * F.embedding(indices.flatten(2), table)).sum(2)
            first = piece.emit_start - piece.start
            outputs.append(read[:, first:])
            addresses.append((indices[:, first:], slot_weights[:, first:]))
            moved_keys = keys
            if piece.key_stop > piece.start:
                loss = addressing_loss(halves, piece.key_stop - piece.start)
                addressing_losses.append(loss.detach())
                if options.key_lr:
                    (gradient,) = torch.autograd.grad(loss, keys, create_graph=outer, retain_graph=True)
                    old_sub_keys = sub_keys.detach() if old_sub_keys is None else old_sub_keys
                    moved_keys = keys - options.key_lr * gradient
            if piece.num_written:
                end = piece.num_written
                target = stream.targets[:, piece.start + options.lookahead : piece.write_stop + options.lookahead]
                error = read[:, :end] - target
                token_weights = weights[:, piece.start : piece.write_stop]
                squared_errors.append(error.detach().square().sum(-1) * token_weights.detach())
                if options.inner_lr:
                    loss = 0.5 * (token_weights * error.square().sum(-1)).sum()
                    (gradient,) = torch.autograd.grad(loss, table, create_graph=outer, retain_graph=True)
                    counted = indices[:, piece.count_start - piece.start : piece.count_stop - piece.start]
                    counts = torch.bincount(counted.flatten(), minlength=table.shape[0]).clamp(min=1)
                    rows = indices.unique()
                    log_rows.append(rows)
                    log_values.append(values.detach()[rows])
                    values = table - (scale / counts.unsqueeze(-1)).to(table.dtype) * gradient
            sub_keys = moved_keys
        if not outer:
            sub_keys, values, outputs[-1] = sub_keys.detach(), values.detach(), outputs[-1].detach()
            addresses[-1] = (addresses[-1][0], addresses[-1][1].detach())
    squares = torch.cat([stream.targets.new_zeros(stream.targets.shape[0], 0), *squared_errors], 1)
    return ChainResult(
        torch.cat(outputs, 1),
        torch.cat([indices for indices, _ in addresses], 1),
        torch.cat([slot_weights for _, slot_weights in addresses], 1),
        mean_over_columns(squares, values.shape[1], sharding),
        torch.stack(addressing_losses) if addressing_losses else stream.targets.new_zeros(0),
        sub_keys.detach(),
        values.detach(),
        UndoLog(log_rows, log_values, old_sub_keys),
    )
