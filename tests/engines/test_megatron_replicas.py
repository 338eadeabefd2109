"""Replicas share their memories when asked to, and ranks that no longer agree are found and named."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_fwpkm.ops import FastWeightState
from tests.engines.test_engine import BASE, VOCABULARY, batches, change
from tests.spawned_ranks import run_distributed


class Shared:
    """A memory whose hash is this rank's, when it disagrees."""

    layer_number = 3

    def __init__(self, number: int) -> None:
        self.number = number

    def consistency_hash(self) -> torch.Tensor:
        return torch.tensor(self.number)


def share_and_check(rank: int, world_size: int) -> None:
    """Two replicas first, two tensor-parallel ranks then."""
    from megatron_fwpkm.engines import megatron_replicas as replicas
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    def tables(engine: MegatronEngine) -> list[torch.Tensor]:
        """Sub-keys and values of every replica."""
        weights = engine.memories[0].fast_weights()
        mine = torch.cat([weights.sub_keys.flatten(), weights.values.flatten()])
        both = [torch.empty_like(mine) for _ in range(world_size)]
        torch.distributed.all_gather(both, mine)
        return both

    config = change(BASE, "training", check_weight_hash_across_dp_replicas_interval=1)
    config = change(config, "fwpkm", dp_sync="average", dp_sync_interval=2)
    with megatron_run(config.parallel, config.training) as world:
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
    with megatron_run(parallel, BASE.training) as world:
        replicas.check_choices(8, [Shared(5)], world.device)
        message = r"iteration 9: .* different slots, gates or queries in the memory of layer 3"
        with pytest.raises(ValueError, match=message):
            replicas.check_choices(9, [Shared(5 + rank)], world.device)


class OneOf:
    """A memory with bfloat16 values."""

    layer_number = 3

    def __init__(self, values: torch.Tensor) -> None:
        self.weights = FastWeightState(torch.zeros(1, 2, 4, 2), values)

    def consistency_hash(self) -> torch.Tensor:
        return torch.tensor(0)

    def fast_weights(self) -> FastWeightState:
        return self.weights


def test_the_mean_of_bfloat16_values_is_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three replicas, of which this is one: sums of two are rounded alike with and without float32."""
    from megatron_fwpkm.engines import megatron_replicas as replicas

    rows = 2 * replicas._ROWS_AT_ONCE + 5
    everyone = torch.randn(3, rows, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    waiting = list(everyone.split(replicas._ROWS_AT_ONCE, dim=1))

    def all_reduce(part: torch.Tensor, group: object) -> None:
        if part.dim() == 2:
            for other in waiting.pop(0)[1:]:
                part.add_(other)

    monkeypatch.setattr(replicas.dist, "all_reduce", all_reduce)
    group = SimpleNamespace(size=lambda: 3)
    monkeypatch.setattr(replicas.parallel_state, "get_data_parallel_group", lambda: group)
    memory = OneOf(everyone[0].clone())
    replicas.average_memories([memory])
    assert not waiting
    assert torch.equal(memory.weights.values, everyone.double().mean(0).float().bfloat16())


@pytest.mark.usefixtures("cpu_compat")
def test_replicas_share_and_are_checked() -> None:
    run_distributed(share_and_check, 2, timeout=90)
