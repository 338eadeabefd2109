"""What is wrong in megatron-core and avoided here: still there in the installed release, or it need not be avoided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.checkpoint import slow_weights
from megatron_fwpkm.distributed.megatron_versions import groups_found_by_kind
from megatron_fwpkm.engines.megatron_groups import megatron_run
from tests.engines.test_engine import BASE, VOCABULARY, batches, change, halves_equal_the_whole
from tests.spawned_ranks import run_distributed

SHARDED = change(BASE, "parallel", use_distributed_optimizer=True)
INTERLEAVED = change(
    change(BASE, "parallel", pipeline_model_parallel_size=2, num_virtual_stages_per_pipeline_rank=2),
    "model",
    num_layers=4,
)


def norms(rank: int, world_size: int) -> list[float]:
    """The gradient norm of the first step with single and with batched sends between the stages."""
    from megatron_fwpkm.engines.megatron import MegatronEngine

    with megatron_run(INTERLEAVED.parallel, INTERLEAVED.training) as world:
        found = []
        for batched in (False, True):
            engine = MegatronEngine(INTERLEAVED, VOCABULARY, world.device)
            for chunk in engine.chunks:
                chunk.config.batch_p2p_comm = batched
            found.append(engine.train_step(batches(0)).grad_norm)
        return found


@pytest.mark.slow
def test_batched_sends_spoil_the_gradients_of_an_interleaved_pipeline() -> None:
    single, batched = run_distributed(norms, 2, timeout=120)[0]
    assert batched != pytest.approx(single, rel=1e-2), "batched sends may be allowed again"


@pytest.mark.slow
def test_schedules_divide_a_loss_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_fwpkm.engines import megatron as engine_module

    whole, seen = engine_module.weighted_loss, []

    def noted(*arguments: Any) -> Any:
        loss, sums = whole(*arguments)
        seen.append((loss.detach(), loss.item()))
        return loss, sums

    monkeypatch.setattr(engine_module, "weighted_loss", noted)
    with megatron_run(BASE.parallel, BASE.training) as world:
        engine_module.MegatronEngine(BASE, VOCABULARY, world.device).train_step(batches(0))
    assert len(seen) > 1
    assert all(after.item() == pytest.approx(before / len(seen)) for after, before in seen), "sums need not be owned"


@pytest.mark.parametrize(
    ("kind", "failure", "message"),
    [
        (None, Exception, "flattened_range is not supported"),
        ("dp_reshardable", AssertionError, "At index 1 diff"),
    ],
)
@pytest.mark.slow
def test_optimizer_states_of_another_sharding_do_not_resume(
    kind: str | None, failure: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default cannot be saved; the other one comes back with a wrong step."""
    monkeypatch.setattr(slow_weights, "METADATA", {} if kind is None else {"distrib_optim_sharding_type": kind})
    with pytest.raises(failure, match=message):
        halves_equal_the_whole(SHARDED, tmp_path / "checkpoint")


@pytest.mark.slow
def test_loading_takes_the_options_of_the_saved_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_fwpkm.engines.megatron import MegatronEngine

    def loaded() -> set[float]:
        engine = MegatronEngine(change(BASE, "optimizer", lr=5e-3), VOCABULARY, world.device)
        engine.load(tmp_path, weights_only=False)
        return {group["max_lr"] for group in engine.optimizer.param_groups}

    with megatron_run(BASE.parallel, BASE.training) as world:
        engine = MegatronEngine(BASE, VOCABULARY, world.device)
        engine.train_step(batches(0))
        engine.save(tmp_path)
        assert loaded() == {5e-3}
        monkeypatch.setattr(slow_weights, "own_options_kept", lambda optimizer: groups_found_by_kind())
        assert loaded() == {BASE.optimizer.lr}, "if the run's own options stay, the repair may go"
