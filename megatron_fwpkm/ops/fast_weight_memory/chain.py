"""Step sizes of the writes, and means of squared errors over the columns of all processes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..chunk_pieces import Piece
from ..sharding import TableSharding
from ..stream import Stream
from .options import MemoryOptions


def write_scales(stream: Stream, pieces: list[Piece], options: MemoryOptions) -> Tensor:
    """Step size of every piece's write before the division by a slot's readers: lr * heads*k * N / (B*W), [pieces].

    N is B * tokens of the chunk without a mask, else the number of written tokens whose mask is positive (DESIGN 2.2).
    """
    batch, heads = stream.queries.shape[0], stream.queries.shape[2]
    step = options.inner_lr * heads * options.topk
    if stream.mask is None:
        scales = [step * piece.num_samples / max(1, piece.num_written) for piece in pieces]
        result, start = stream.queries.new_empty(len(pieces)), 0
        # Filled on the device: a copy from the host would make a GPU wait, and cannot be captured in a CUDA graph.
        for scale, run in itertools.groupby(scales):
            stop = start + len(list(run))
            result[start:stop] = scale
            start = stop
        return result
    counted = (stream.mask > 0).sum(0).to(stream.queries.dtype)
    return torch.stack([counted[p.start : p.write_stop].sum() * (step / max(1, batch * p.num_written)) for p in pieces])


def mean_over_columns(squared_sums: Tensor, num_columns: int, sharding: TableSharding | None) -> Tensor:
    """Turn sums over this process's columns into means over all columns."""
    if sharding is None:
        return squared_sums / num_columns
    # One collective for the sums and for the number of columns they run over.
    sums = sharding.sum_shards(torch.cat([squared_sums.flatten(), squared_sums.new_full((1,), num_columns)]))
    return (sums[:-1] / sums[-1]).view_as(squared_sums)
