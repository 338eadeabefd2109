"""Parameter groups: learning rates of their own for embedding and output, weight decay that grows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.checkpoint.compatibility import check_same_schedule
from megatron_fwpkm.config import OptimizerConfig, PretrainConfig
from megatron_fwpkm.engines import megatron_optimizer as module
from megatron_fwpkm.engines.learning_rate import build_scheduler
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from tests.engines.test_engine import BASE, VOCABULARY, batches, change, halves_equal_the_whole
from tests.engines.test_learning_rate import OneGroup
from tests.quick_cases import product_cases
from tests.spawned_ranks import run_distributed

GROWS = {"weight_decay_incr_style": "linear", "start_weight_decay": 0.02, "end_weight_decay": 0.1}


def decoupled(bf16: bool = False, distributed: bool = False, **values: Any) -> PretrainConfig:
    config = change(BASE, "model", untie_embeddings_and_output_weights=True)
    config = change(change(config, "training", bf16=bf16), "parallel", use_distributed_optimizer=distributed)
    return change(config, "optimizer", **{"decoupled_lr": 1e-3, "decoupled_min_lr": 1e-4, "min_lr": 1e-3} | values)


def decays(**values: Any) -> list[float]:
    optimizer = OneGroup()
    scheduler = build_scheduler(optimizer, OptimizerConfig(**values), 8)  # type: ignore[arg-type]
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["weight_decay"])
        scheduler.step(1)
    return seen


def test_weight_decay_grows_from_the_first_to_the_last_iteration() -> None:
    linear = decays(**GROWS)
    assert linear[:9] == pytest.approx([0.02 + 0.08 * step / 8 for step in range(9)], rel=1e-14)
    assert linear[9] == 0.1
    cosine = decays(**GROWS | {"weight_decay_incr_style": "cosine"})
    expected = [0.02 + 0.08 * 0.5 * (1 - math.cos(math.pi * step / 8)) for step in range(9)]
    assert cosine[:9] == pytest.approx(expected, rel=1e-14)
    assert set(decays(weight_decay=0.3)) == {0.3}


@pytest.mark.parametrize("distributed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_embedding_and_output_have_learning_rates_of_their_own(distributed: bool) -> None:
    config = decoupled(distributed=distributed, **GROWS)
    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        own = [group for group in engine.optimizer.param_groups if group["is_decoupled_lr"]]
        others = [group for group in engine.optimizer.param_groups if not group["is_decoupled_lr"]]
        width = config.model.hidden_size
        assert [weight.numel() for group in own for weight in group["params"]] == 2 * [VOCABULARY * width]
        assert len(others) == 2
        source, steps = batches(0), []
        for step in range(1, 9):
            used = engine.train_step(source).lr
            steps.append((own[0]["lr"], *(group["lr"] for group in others)))
            assert used == (0.0 if step == 1 else steps[-2][1]), "the log says the rate of the other weights"
            assert own[0]["weight_decay"] == others[0]["weight_decay"] == pytest.approx(0.02 + 0.01 * step)
            assert others[1]["weight_decay"] == 0.0
        # Two steps of warm-up, then a cosine over six.
        shares = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(7)]
        assert [step[0] for step in steps] == pytest.approx([5e-4] + [1e-4 + 9e-4 * share for share in shares])
        for place in (1, 2):
            assert [step[place] for step in steps] == pytest.approx([5e-3] + [1e-3 + 9e-3 * share for share in shares])


def test_the_end_of_decoupled_lr_is_min_lr_where_nothing_else_is_given() -> None:
    config = decoupled(decoupled_min_lr=None, min_lr=5e-4)
    with megatron_run(config.parallel, config.training) as world:
        groups = MegatronEngine(config, VOCABULARY, world.device).optimizer.param_groups
        assert {(group["max_lr"], group["min_lr"]) for group in groups} == {(1e-2, 5e-4), (1e-3, 5e-4)}


@pytest.mark.parametrize(
    ("bf16", "distributed"),
    product_cases([False, True], [False, True], quick=lambda bf16, distributed: bf16 and not distributed),
)
def test_resume_is_bit_for_bit(bf16: bool, distributed: bool, tmp_path: Path) -> None:
    halves_equal_the_whole(decoupled(bf16, distributed, **GROWS), tmp_path / "checkpoint")


def test_the_checkpoint_says_until_when_weight_decay_grows(tmp_path: Path) -> None:
    """With --use-checkpoint-opt_param-scheduler; else it is --train-iters, and another number is announced."""
    first = change(BASE, "optimizer", **GROWS)
    longer = change(first, "training", train_iters=16)
    taking = change(longer, "checkpoint", use_checkpoint_opt_param_scheduler=True)
    with megatron_run(BASE.parallel, BASE.training) as world:

        def resumed(config: PretrainConfig) -> tuple[list[str], float]:
            engine = MegatronEngine(config, VOCABULARY, world.device)
            notices = engine.load(tmp_path, weights_only=False)
            return notices, max(group["weight_decay"] for group in engine.optimizer.param_groups)

        engine = MegatronEngine(first, VOCABULARY, world.device)
        source = batches(0)
        for _ in range(4):
            engine.train_step(source)
        engine.save(tmp_path)
        assert resumed(first) == resumed(taking) == ([], pytest.approx(0.06))
        assert resumed(longer) == (
            ["changed: weight decay increases until iteration 16 (--train-iters) instead of 8"],
            pytest.approx(0.04),
        )
    check_same_schedule(BASE, change(BASE, "training", train_iters=8), "there")
    message = "--train-iters is 8 in the checkpoint and 16 in this run; use the saved values"
    with pytest.raises(ValueError, match=message):
        check_same_schedule(first, longer, "there")


def two_stages(rank: int, world_size: int, folder: str) -> list[float]:
    config = change(decoupled(), "parallel", pipeline_model_parallel_size=2, use_distributed_optimizer=True)
    config = change(config, "model", untie_embeddings_and_output_weights=False)
    # Random numbers of a second engine's pipeline stage are not those of the first one.
    config = change(config, "model", attention_dropout=0.0, hidden_dropout=0.0)
    with megatron_run(config.parallel, config.training) as world:
        groups = MegatronEngine(config, VOCABULARY, world.device).optimizer.param_groups
        own = [group["params"] for group in groups if group["is_decoupled_lr"]]
        assert [len(weights) for weights in own] == [1], "the embedding, and its copy on the last stage"
    return halves_equal_the_whole(config, Path(folder) / "checkpoint")


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_compat")
def test_a_pipeline_has_the_group_on_both_ends(tmp_path: Path) -> None:
    one, other = run_distributed(two_stages, 2, str(tmp_path), timeout=240)
    assert one == other


def test_without_its_mark_the_group_is_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are not told apart by their learning rates, in newer releases because `groups_found_by_kind` says so."""
    monkeypatch.setattr(module, "_overrides", lambda made, config: module.get_standard_config_overrides(made))
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        halves_equal_the_whole(decoupled(), tmp_path / "checkpoint")
