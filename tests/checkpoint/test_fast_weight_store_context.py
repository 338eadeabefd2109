"""Tables that are spread over tensor- and context-parallel ranks are stored in their own order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_fwpkm.checkpoint.fast_weight_store import FastWeightStore
from megatron_fwpkm.engines.megatron_groups import memory_ranks
from tests.checkpoint.test_fast_weight_store import MEMORY, Layer, whole
from tests.spawned_ranks import run_distributed


def _parts(tensor_parallel: int, context_parallel: int) -> tuple[slice, slice]:
    """Make Megatron's groups; returns the rows of the sub-keys and columns of the values that are this rank's."""
    from megatron.core import parallel_state

    from megatron_fwpkm.layers.table_sharding import ContextSharding, MemorySharding

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_parallel, context_parallel_size=context_parallel)
    context = ContextSharding(parallel_state.get_context_parallel_group())
    group = parallel_state.get_tensor_and_context_parallel_group()
    sharding = MemorySharding(group, context, MEMORY.num_subkeys, MEMORY.value_dim)
    return sharding.rows, sharding.columns


def _part(parts: tuple[slice, slice], layer: int, replica: int) -> Layer:
    state, (rows, columns) = whole(layer, replica, pending=False), parts
    return Layer(layer, type(state)(state.sub_keys[:, :, rows].contiguous(), state.values[:, columns].contiguous()))


def _save_and_load(rank: int, world_size: int, folder: Path) -> list[tuple[slice, slice]]:
    from megatron_fwpkm.distributed import megatron_on_cpu

    megatron_on_cpu.install()
    saved = _parts(2, 2)
    FastWeightStore(MEMORY, seed=5, ranks=memory_ranks()).save(folder, [_part(saved, 2, 0)])
    seen = [saved]
    for layout in ((2, 2), (1, 4), (4, 1), (1, 2)):
        seen.append(_parts(*layout))
        layer, expected = _part(seen[-1], 2, 99), _part(seen[-1], 2, 0)
        FastWeightStore(MEMORY, seed=5, ranks=memory_ranks()).load(folder, [layer])
        assert torch.equal(layer.state.values, expected.state.values), layout
        assert torch.equal(layer.state.sub_keys, expected.state.sub_keys), layout
    return seen


@pytest.mark.slow
def test_parts_come_back_in_every_layout(tmp_path: Path) -> None:
    by_rank = run_distributed(_save_and_load, 4, tmp_path, timeout=100)
    layouts = list(zip(*by_rank, strict=True))
    # Tensor-parallel ranks are numbered first; each one's columns are cut by context.
    starts = [[columns.start for _, columns in ranks] for ranks in layouts]
    assert starts == [[0, 4, 2, 6], [0, 4, 2, 6], [0, 2, 4, 6], [0, 2, 4, 6], [0, 4, 0, 4]]
    assert [[2 * rows.start for rows, _ in ranks] for ranks in layouts] == starts
