"""Causal core attention on torch's scaled_dot_product_attention, full or within a sliding window."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from itertools import accumulate, pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from .documents import document_lengths
from .table_sharding import ContextSharding
from .training_window import NarrowedInTraining

_SMALLEST_BLOCK = 32  # smaller ones are slower on CPU and GPU alike


class WindowedAttention(NarrowedInTraining, MegatronModule):
    """Core attention in which a token sees itself and, with a window, at most `window` tokens before it.

    With a window, queries are taken in blocks that see their own and the preceding keys only, so that memory and work
    grow with tokens times window and not with the square of the tokens. Key and value heads are not repeated for
    grouped queries: the queries of a group stand one below the other against the same keys.

    Where documents are told apart (`--reset-attention-mask`), every document is attended to by itself, so that memory
    and work shrink with the documents.

    With context parallelism the keys and values of all ranks are gathered, and each of this rank's two pieces of the
    sequence attends to what stands before it.

    Args:
        config: transformer configuration.
        layer_number: counted from 1.
        attn_mask_type: must be causal.
        attention_type: `self`.
        attention_dropout: probability; default from `config`.
        softmax_scale: default 1 / sqrt(head width).
        cp_comm_type: unused; part of megatron's interface.
        pg_collection: process groups; default those of megatron's parallel state.
        window: tokens to the left that are visible, or None for all.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__(config)
        assert attn_mask_type == AttnMaskType.causal and attention_type == "self"
        if pg_collection is None:
            pg_collection = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["cp"])
        self.context = ContextSharding(pg_collection.cp)
        self.layer_number = layer_number
        self.window = window
        self.softmax_scale = softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(config.kv_channels)
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [s, b, heads, width]; with context parallelism s counts the tokens of this rank, as in the others.
            key: [s, b, groups, width].
            value: [s, b, groups, width].
            attention_mask: None, or [b, whole sequence] bool, True at the first token of a document, best on the CPU:
                tokens see their own document only. Either way the mask is causal.
            attn_mask_type: part of megatron's interface; causal.
            attention_bias: must be None.
            packed_seq_params: must be None.

        Returns:
            [s, b, heads * width].
        """
        assert attention_bias is None and packed_seq_params is None
        assert query.shape[0] == key.shape[0]
        # Heads differ between tensor-parallel ranks, so their dropout must, too.
        dropout = self.dropout if self.training else 0.0
        window = self.training_window if self.window is None and self.training else self.window
        with get_cuda_rng_tracker().fork() if dropout else nullcontext():
            attend = partial(windowed_attention, window=window, scale=self.softmax_scale, dropout=dropout)
            if attention_mask is not None:
                attend = partial(attention_by_document, document_lengths(attention_mask), attend)
            if self.context.size == 1:
                return attend(query, key, value)
            both = self.context.gather_for_own_tokens(torch.cat([key, value], dim=-1))
            key, value = both.split(key.shape[-1], dim=-1)
            pieces = self.context.own_pieces(key.shape[0])
            contexts = [
                attend(part, key[: piece.stop], value[: piece.stop])
                for part, piece in zip(query.chunk(2), pieces, strict=True)
            ]
            return torch.cat(contexts)


def attention_by_document(
    lengths: list[list[int]], attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Attention of every document by itself.

    Args:
        lengths: tokens of the documents of every sequence, as they follow each other; those behind the keys are left
            out.
        attend: takes queries, keys and values of one document, [s, 1, ...] each.
        query: [s, b, heads, width].
        key: [at least s, b, groups, width]; the last s belong to the queries.
        value: like `key`.

    Returns:
        [s, b, heads * width].
    """
    stop = key.shape[0]
    first = stop - query.shape[0]
    rows = []
    for row, tokens in enumerate(lengths):
        ends = [min(end, stop) for end in accumulate(tokens)]
        sizes = [end - begin for begin, end in pairwise([0, *ends])]
        own = [max(0, end - max(begin, first)) for begin, end in pairwise([0, *ends])]
        parts = (x[:, row : row + 1].split(size) for x, size in ((query, own), (key, sizes), (value, sizes)))
        rows.append(torch.cat([attend(q, k, v) for q, k, v in zip(*parts, strict=True) if len(q)]))
    return torch.cat(rows, dim=1)


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float, dropout: float = 0.0
) -> Tensor:
    """Causal attention over the last `window` tokens and the token itself; see `WindowedAttention`.

    Args:
        query: [s, b, heads, width].
        key: [at least s, b, groups, width]; the last s belong to the queries, the others stand before them.
        value: like `key`.
        window: visible tokens to the left, or None for all.
        scale: of the scores.
        dropout: on the attention weights.

    Returns:
        [s, b, heads * width].
    """
    length, batch, heads, width = query.shape
    groups, before = key.shape[2], key.shape[0] - length
    if window is None or window >= before + length - 1:
        # [b * groups, heads // groups, s, width] views: all query heads of a group see one key head through stride 0.
        q = query.permute(1, 2, 0, 3).reshape(batch * groups, heads // groups, length, width)
        shape = batch * groups, heads // groups, before + length, width
        k, v = (x.permute(1, 2, 0, 3).flatten(0, 1).unsqueeze(1).expand(shape) for x in (key, value))
        mask = causal_lower_right(length, before + length) if before else None
        context = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=not before, scale=scale, dropout_p=dropout
        )
        return context.view(batch, heads, length, width).permute(2, 0, 1, 3).reshape(length, batch, heads * width)
    block = _block_size(window)
    num_blocks = -(-length // block)
    padding = num_blocks * block - length
    # Padded queries see padded or real keys before them; their output is cut off. Keys get `window` rows in front,
    # which are text as far as there is any.
    empty = max(0, window - before)
    first = max(0, before - window)
    q = F.pad(query, (0, 0, 0, 0, 0, 0, 0, padding)).view(num_blocks, block, batch * groups, heads // groups, width)
    q = q.permute(0, 2, 3, 1, 4).reshape(num_blocks, batch * groups, heads // groups * block, width)
    k, v = (
        # [blocks, b * groups, width, window + block] overlapping views of one padded copy
        F.pad(x[first:], (0, 0, 0, 0, 0, 0, empty, padding))
        .flatten(1, 2)
        .unfold(0, window + block, block)
        .transpose(2, 3)
        for x in (key, value)
    )
    visible = _block_mask(num_blocks, block, window, empty, heads // groups, query.device)
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, dropout_p=dropout)
    context = context.view(num_blocks, batch, groups, heads // groups, block, width).permute(0, 4, 1, 2, 3, 5)
    return context.reshape(num_blocks * block, batch, heads * width)[:length]


def _block_size(window: int) -> int:
    """Queries per block: about the window, so that at most half of the scores are masked."""
    return max(_SMALLEST_BLOCK, window)


@lru_cache(maxsize=16)
def _block_mask(num_blocks: int, block: int, window: int, empty: int, repeats: int, device: torch.device) -> Tensor:
    """[blocks, 1, repeats * block, window + block] bool, True where query sees key."""
    query = torch.arange(block, device=device).view(-1, 1) + window
    key = torch.arange(window + block, device=device).view(1, -1)
    visible = (key <= query) & (key >= query - window)
    mask = visible.repeat(repeats, 1).expand(num_blocks, 1, -1, -1).clone()
    mask[0, :, :, :empty] = False  # the rows in front of the text
    return mask
