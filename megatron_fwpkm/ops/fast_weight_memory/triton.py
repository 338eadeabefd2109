"""The memory on touched rows only, in Triton kernels: ``implementation="triton"``."""

from __future__ import annotations

from torch import Tensor

from megatron_fwpkm.ops.fast_weight_memory.arguments import MemoryOptions, Stream
from megatron_fwpkm.ops.fast_weight_memory.chain import ChainResult, Chains
from megatron_fwpkm.ops.fast_weight_memory.schedule import Piece
from megatron_fwpkm.ops.fast_weight_memory.sparse import run_chains
from megatron_fwpkm.ops.fast_weight_memory.triton_key_chain import TritonKeyChain
from megatron_fwpkm.ops.fast_weight_memory.triton_value_chain import TritonValueChain, read_rows
from megatron_fwpkm.ops.fast_weight_memory.triton_write_plan import make_triton_write_plan
from megatron_fwpkm.ops.sharding import TableSharding

TRITON_CHAINS = Chains(TritonKeyChain, TritonValueChain, make_triton_write_plan, read_rows)
"""What ``implementation="triton"`` is made of."""


def run_triton(
    stream: Stream,
    sub_keys: Tensor,
    values: Tensor,
    pieces: list[Piece],
    options: MemoryOptions,
    sharding: TableSharding | None,
    *,
    in_place: bool,
    rounding: Tensor | None = None,
) -> ChainResult:
    """:func:`run_chains` in Triton; arguments and result are the same."""
    tables = sub_keys, values
    return run_chains(stream, *tables, pieces, options, sharding, TRITON_CHAINS, in_place=in_place, rounding=rounding)
