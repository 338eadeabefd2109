"""Megatron's parallel state for a layout: groups of processes, seeds, and their end."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from ..checkpoint.fast_weight_store import MemoryRanks
from ..config import ParallelConfig, TrainingConfig
from ..distributed import megatron_on_cpu
from ..distributed.megatron_versions import silence_notices
from ..distributed.startup import World, distributed_run


@contextmanager
def megatron_run(parallel: ParallelConfig, training: TrainingConfig) -> Iterator[World]:
    """A run of ranks with Megatron's parallel state, for whoever builds models under it without a training run.

    Raises ValueError as `distributed_run` and `model_parallel_groups` do.
    """
    with distributed_run(parallel, training) as world, model_parallel_groups(parallel, training.seed, world):
        yield world


@contextmanager
def model_parallel_groups(parallel: ParallelConfig, seed: int, world: World) -> Iterator[None]:
    """Megatron's parallel state for the layout, and all random generators seeded, for as long as the context lasts.

    An error leaves the groups of several ranks as they are: taking them down would wait for ranks that will not come.

    Raises:
        ValueError: the layout does not divide the number of processes.
    """
    silence_notices()
    megatron_on_cpu.install()
    _make_groups(parallel, world)
    set_seeds(seed)
    try:
        yield
    except BaseException:
        if world.size == 1:
            _take_down_groups()
        raise
    _take_down_groups()


def set_seeds(seed: int) -> None:
    """Seed python, numpy, torch and Megatron's tracker; pipeline stages differ, data-parallel replicas are equal."""
    own = seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)
    model_parallel_cuda_manual_seed(own, force_reset_rng=True)


def memory_ranks() -> MemoryRanks:
    """Which ranks share this rank's memories, by Megatron's parallel state."""
    return MemoryRanks(
        replica=parallel_state.get_data_parallel_rank(),
        replicas=parallel_state.get_data_parallel_world_size(),
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        context_group=parallel_state.get_context_parallel_group(),
        sharing_group=parallel_state.get_tensor_and_context_parallel_group(),
    )


def parallel_groups() -> dict[str, dist.ProcessGroup]:
    """By name the groups in which this rank communicates while it trains: all ranks, and one for each parallel size."""
    assert dist.group.WORLD is not None
    return {
        "all ranks": dist.group.WORLD,
        "tensor-parallel": parallel_state.get_tensor_model_parallel_group(),
        "context-parallel": parallel_state.get_context_parallel_group(),
        "pipeline": parallel_state.get_pipeline_model_parallel_group(),
        "data-parallel": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _make_groups(parallel: ParallelConfig, world: World) -> None:
    sizes = (
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.context_parallel_size,
    )
    if world.size % math.prod(sizes):
        context = f" times --context-parallel-size {sizes[2]}" if sizes[2] > 1 else ""
        raise ValueError(
            f"the number of processes, {world.size}, is not divisible by "
            f"--tensor-model-parallel-size {sizes[0]} times "
            f"--pipeline-model-parallel-size {sizes[1]}{context}; start a multiple of {math.prod(sizes)}"
        )
    virtual = parallel.num_virtual_stages_per_pipeline_rank
    gc.collect()  # an earlier run's engine is full of cycles, and holds its memory and the threads of its groups
    if parallel_state.model_parallel_is_initialized():
        _take_down_groups()
    parallel_state.initialize_model_parallel(
        sizes[0],
        sizes[1],
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        context_parallel_size=sizes[2],
        distributed_timeout_minutes=parallel.distributed_timeout_minutes,
    )


def _take_down_groups() -> None:
    """End the groups of Megatron's parallel state, which only forgets them: their threads would go on for ever."""
    groups = parallel_state._global_process_group_list or ()
    parallel_state.destroy_model_parallel()
    if dist.get_world_size() > 1:
        dist.barrier()  # nobody leaves while others still talk to it
    for group in groups:
        if group in dist.distributed_c10d._world.pg_map:
            dist.destroy_process_group(group)
