"""Replicas share their memories when asked to, and ranks that no longer agree are found and named."""

from __future__ import annotations

import pytest
import torch

from tests.distributed import run_distributed
from tests.training.test_engine import BASE, VOCABULARY, batches, change


class Shared:
    """A memory whose hash is this rank's, when it disagrees."""

    layer_number = 3

    def __init__(self, number: int) -> None:
        self.number = number

    def consistency_hash(self) -> torch.Tensor:
        return torch.tensor(self.number)


def share_and_check(rank: int, world_size: int) -> None:
    """Two replicas first, two tensor-parallel ranks then."""
    from megatron_fwpkm.training import replicas
    from megatron_fwpkm.training.engine import MegatronEngine
    from megatron_fwpkm.training.startup import distributed_run

    def tables(engine: MegatronEngine) -> list[torch.Tensor]:
        """Sub-keys and values of every replica."""
        weights = engine.memories[0].fast_weights()
        mine = torch.cat([weights.sub_keys.flatten(), weights.values.flatten()])
        both = [torch.empty_like(mine) for _ in range(world_size)]
        torch.distributed.all_gather(both, mine)
        return both

    config = change(BASE, "training", check_weight_hash_across_dp_replicas_interval=1)
    config = change(config, "fwpkm", dp_sync="average", dp_sync_interval=2)
    with distributed_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        source = batches(0, rank, world_size)
        engine.train_step(source)
        one, other = tables(engine)
        assert not torch.equal(one, other), "replicas own their memories"
        replicas.average_memories(engine.memories)
        for table in tables(engine):
            torch.testing.assert_close(table, (one + other) / 2)
        engine.train_step(source)
        assert torch.equal(*tables(engine)), "averaged after the second step"
        if rank == 1:
            next(engine.chunks[0].parameters()).data.view(-1)[0] += 1e-3
        with pytest.raises(ValueError, match="iteration 7: the slow weights of data-parallel replicas differ"):
            replicas.check_slow_weights(7, engine.chunks, world.device)
    parallel = change(BASE, "parallel", tensor_model_parallel_size=2).parallel
    with distributed_run(parallel, BASE.training) as world:
        replicas.check_choices(8, [Shared(5)], world.device)
        message = r"iteration 9: .* different slots, gates or queries in the memory of layer\(s\) 3"
        with pytest.raises(ValueError, match=message):
            replicas.check_choices(9, [Shared(5 + rank)], world.device)


@pytest.mark.usefixtures("cpu_compat")
def test_replicas_share_and_are_checked() -> None:
    run_distributed(share_and_check, 2, timeout=90)
