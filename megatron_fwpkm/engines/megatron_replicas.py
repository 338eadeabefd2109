"""What ranks that hold the same thing must agree on: replicas' slow weights, and the addresses of a shared memory.

Also the one way in which data-parallel replicas, who own their memories, share them: --fwpkm-dp-sync average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import check_param_hashes_across_dp_replicas
from torch import Tensor, nn

from ..config import PretrainConfig
from ..config.memories import memory_numbers
from ..config.saved_replicas import averaged_after
from ..distributed.ranks import any_rank
from .memory_report import HeldFastWeights

_ROWS_AT_ONCE = 8192
"""Rows of a bfloat16 table that are averaged together."""


class SharedMemory(Protocol):
    """What the checks need of a memory layer."""

    layer_number: int

    def consistency_hash(self) -> Tensor:
        """Hash (int64 scalar) of chosen slots, gates and queries."""

    def fast_weights(self) -> HeldFastWeights:
        """References to this rank's tables."""


def keep_replicas_together(
    config: PretrainConfig,
    iteration: int,
    memories: Sequence[SharedMemory],
    chunks: Sequence[nn.Module],
    device: torch.device,
) -> None:
    """Average and check whatever is due after `iteration`; called by every rank.

    Raises ValueError on every rank where a check fails on one.
    """
    fwpkm = config.fwpkm
    if averaged_after(fwpkm, iteration):
        average_memories(memories)
    interval = fwpkm.check_consistency_interval
    if memory_numbers(config) and interval and iteration % interval == 0:
        check_choices(iteration, memories, device)
    hash_interval = config.training.check_weight_hash_across_dp_replicas_interval
    if hash_interval is not None and iteration % hash_interval == 0:
        check_slow_weights(iteration, chunks, device)


@torch.no_grad()
def average_memories(memories: Sequence[SharedMemory]) -> None:
    """Give every data-parallel replica the mean of all tables, in place; waiting tokens stay where they are.

    The mean of bfloat16 values is taken in float32, some rows at a time, and rounded to the nearest.
    """
    group = parallel_state.get_data_parallel_group()
    if group.size() == 1:
        return
    for memory in memories:
        for table in memory.fast_weights().tables().values():
            rows = table.split(table.shape[0] if table.dtype == torch.float32 else _ROWS_AT_ONCE)
            for part in rows:
                mean = part.float()
                dist.all_reduce(mean, group=group)
                part.copy_(mean.div_(group.size()))


@torch.no_grad()
def memories_are_equal(memories: Sequence[SharedMemory], device: torch.device) -> bool:
    """Whether all data-parallel replicas have the same tables, by sums of their bits; called by every rank."""
    group = parallel_state.get_data_parallel_group()
    tables = [table for memory in memories for table in memory.fast_weights().tables().values()]
    different = False
    if tables and group.size() > 1:
        sums = torch.stack([_sum_of_bits(table) for table in tables]).to(device)
        most = torch.cat([sums, -sums])
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
        different = not torch.equal(most, torch.cat([sums, -sums]))
    return not any_rank([different], device)[0]


def _sum_of_bits(table: Tensor) -> Tensor:
    """The numbers of a table, read as integers and added up, some rows at a time."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[table.element_size()]
    return torch.stack([rows.view(integers).sum(dtype=torch.int64) for rows in table.split(_ROWS_AT_ONCE)]).sum()


def check_choices(iteration: int, memories: Sequence[SharedMemory], device: torch.device) -> None:
    """See that the ranks which share a memory had the same slots, gates and queries in the last forward.

    Otherwise each writes its part of the tables for other texts, without any other sign. A table that was corrupted
    where it lies is not found: all ranks read it alike. Raises ValueError that names the layers.
    """
    group = parallel_state.get_tensor_and_context_parallel_group()
    wrong: list[int] = []
    if group.size() > 1 and memories:
        mine = torch.stack([memory.consistency_hash() for memory in memories]).to(device)
        everyone = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(everyone, mine, group=group)
        equal = torch.stack([(other == everyone[0]) for other in everyone]).all(0)
        wrong = [memory.layer_number for memory, same in zip(memories, equal.tolist(), strict=True) if not same]
    if any_rank([bool(wrong)], device)[0]:
        where = f"of layer{'s' * (len(wrong) != 1)} {' '.join(map(str, wrong))}" if wrong else "on another rank"
        raise ValueError(
            f"iteration {iteration}: ranks that share a memory had different slots, gates or queries in the memory "
            f"{where}: their parts of the tables are no longer consistent; resume from the last checkpoint with "
            "--deterministic"
        )


def check_slow_weights(iteration: int, chunks: Sequence[nn.Module], device: torch.device) -> None:
    """See that all data-parallel replicas have the same slow weights, bit for bit.

    Raises ValueError.
    """
    same = check_param_hashes_across_dp_replicas(list(chunks), cross_check=True)
    if any_rank([not same], device)[0]:
        rank = parallel_state.get_data_parallel_rank()
        raise ValueError(
            f"iteration {iteration}: the slow weights of data-parallel replicas differ"
            f"{f' (seen on replica {rank})' if not same else ''}; resume from the last checkpoint"
        )
