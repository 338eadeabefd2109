"""Defects of megatron-core's distributed optimizer in saving and resuming: there, mended, and mended only there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_fwpkm.checkpoint import optimizer_resume, slow_weights
from megatron_fwpkm.engines.megatron_groups import megatron_run
from tests.engines.test_engine import BASE, VOCABULARY, batches, change, halves_equal_the_whole

SHARDED = change(BASE, "parallel", use_distributed_optimizer=True)
BUCKETS = change(SHARDED, "parallel", overlap_grad_reduce=True)


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several buckets for the gradients of a small model."""
    from megatron_fwpkm.engines import megatron as engine

    small = partial(engine.DistributedDataParallelConfig, bucket_size=300)
    monkeypatch.setattr(engine, "DistributedDataParallelConfig", small)


def steps(optimizer: Any) -> list[torch.Tensor]:
    """The step of every parameter's state."""
    return [state["step"] for part in optimizer.chained_optimizers for state in part.optimizer.state.values()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "failure", "message"), [("states", AssertionError, "^$"), ("skipping", KeyError, "step")]
)
def test_without_a_repair_a_run_does_not_resume(
    missing: str, failure: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    if missing == "states":
        monkeypatch.setattr(DistributedOptimizer, "_init_optimizer_states_with_dummy_values", lambda self: None)
    else:
        original = DistributedOptimizer._set_main_param_and_optimizer_states
        monkeypatch.setattr(optimizer_resume, "_copy_known_states", original)
    with pytest.raises(failure, match=message):
        halves_equal_the_whole(SHARDED, tmp_path / "checkpoint")


@pytest.mark.slow
@pytest.mark.usefixtures("small_buckets")
def test_states_are_saved_from_the_right_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves_equal_the_whole(BUCKETS, tmp_path / "right")
    monkeypatch.setattr(slow_weights, "repaired_positions", lambda _: nullcontext())
    with pytest.raises(AssertionError, match="optimizer/|StepResult"):
        halves_equal_the_whole(BUCKETS, tmp_path / "wrong")


@pytest.mark.parametrize("distributed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_resumed_run_may_have_another_learning_rate(
    distributed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.optimizer import optimizer

    from megatron_fwpkm.engines.megatron import MegatronEngine

    config = change(BASE, "parallel", use_distributed_optimizer=distributed)
    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        engine.train_step(batches(0))
        engine.save(tmp_path)
        keys = optimizer.param_group_identifier_keys
        engine = MegatronEngine(change(config, "optimizer", lr=5e-3), VOCABULARY, world.device)
        engine.load(tmp_path, weights_only=False)
        assert {group["max_lr"] for group in engine.optimizer.param_groups} == {5e-3}
        assert optimizer.param_group_identifier_keys == keys
        if "max_lr" not in keys:
            pytest.skip("this release does not compare learning rates: nothing to repair")
        monkeypatch.setattr(optimizer_resume, "groups_found_by_kind", nullcontext)
        with pytest.raises((KeyError, ValueError), match="0.005"):
            engine.load(tmp_path, weights_only=False)


def test_padding_is_taken_out_of_positions() -> None:
    first, second, third = (torch.nn.Parameter(torch.zeros(size)) for size in (5, 8, 3))
    buckets = [
        SimpleNamespace(grad_data=torch.zeros(size), numel_unpadded=unpadded) for size, unpadded in ((16, 13), (16, 3))
    ]
    places = {first: (0, 5, 0), second: (5, 13, 0), third: (16, 19, 1)}
    found = optimizer_resume._without_padding(SimpleNamespace(buckets=buckets, param_index_map=places))
    assert list(found.items()) == [(first, (0, 5, 0)), (second, (5, 13, 0)), (third, (13, 16, 1))]


def test_every_parameter_gets_a_step_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_fwpkm.engines.megatron import MegatronEngine

    different: list[int] = []

    @contextmanager
    def watched(optimizer: Any) -> Iterator[None]:
        with optimizer_resume.repaired_for_loading(optimizer):
            yield
            different.append(len({step.data_ptr() for step in steps(optimizer)}))

    monkeypatch.setattr(slow_weights, "repaired_for_loading", watched)
    with megatron_run(SHARDED.parallel, SHARDED.training) as world:
        engine = MegatronEngine(SHARDED, VOCABULARY, world.device)
        engine.train_step(batches(0))
        engine.save(tmp_path)
        engine.load(tmp_path, weights_only=False)
        assert engine.scheduler.num_steps == 1, "loading replaces the steps of the schedule"
        found = steps(engine.optimizer)
        assert different == [1], "megatron-core loads one tensor for all: if not any more, the repair may go"
        assert len({step.data_ptr() for step in found}) == len(found) > 1
        assert all(step.item() == 1 for step in found)


def test_other_optimizers_are_left_alone() -> None:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    weights = [torch.nn.Parameter(torch.zeros(2))]

    class FusedAdam(torch.optim.SGD):
        """Not torch's Adam, as Transformer Engine's and Apex's."""

    def sharded(inner: torch.optim.Optimizer) -> Any:
        part = DistributedOptimizer.__new__(DistributedOptimizer)
        part.optimizer = inner
        return part

    adam, fused = sharded(torch.optim.AdamW(weights)), sharded(FusedAdam(weights, lr=1.0))
    chained = type("Chained", (), {"chained_optimizers": [adam, fused]})()
    assert optimizer_resume._affected(chained) == [adam]
    assert optimizer_resume._affected(fused) == []
    with optimizer_resume.repaired_for_loading(fused):
        assert "_set_main_param_and_optimizer_states" not in vars(fused)
