"""The values of static memories: a parameter group of their own, through resumes with other factors and new models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import PKMConfig, PretrainConfig
from megatron_fwpkm.config.field_metadata import MAY_CHANGE, marked
from megatron_fwpkm.engines.deepspeed_optimizer import build_adamw
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from tests.engines.test_engine import BASE, VOCABULARY, batches, change, halves_equal_the_whole

STATIC = replace(
    BASE, pkm=PKMConfig(layer_numbers=(1,), num_heads=2, num_subkeys=4, key_dim=8, value_dim=8, topk=2)
)
ZERO = change(STATIC, "parallel", use_distributed_optimizer=True)


def values_of(engine: MegatronEngine) -> dict[str, Any]:
    """The group of the values."""
    (group,) = [group for group in engine.optimizer.param_groups if group["is_decoupled_lr"]]
    assert [weight.numel() for weight in group["params"]] == [16 * 8]
    return group


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize("wd", [{}, {"weight_decay_incr_style": "linear", "start_weight_decay": 0.1,
                                     "end_weight_decay": 0.1}])  # fmt: skip
def test_their_learning_rate_and_weight_decay_are_multiples_of_the_others(wd: dict[str, Any]) -> None:
    config = change(change(STATIC, "pkm", values_lr_mult=3.0, values_wd_mult=0.5), "optimizer", min_lr=1e-3, **wd)
    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        source, own, others = batches(0), values_of(engine), engine.optimizer.param_groups[0]
        for _ in range(4):
            assert engine.train_step(source).lr < 1.1e-2
            assert own["lr"] == pytest.approx(3 * others["lr"]) and own["weight_decay"] == pytest.approx(0.05)
            assert others["weight_decay"] == pytest.approx(0.1)
        groups = build_adamw(config, engine.chunks[0]).param_groups
        assert [group["max_lr"] for group in groups if len(group["params"]) == 1] == [pytest.approx(3e-2)]


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize("config", [STATIC, pytest.param(ZERO, marks=pytest.mark.slow)], ids=["plain", "ZeRO-1"])
def test_resume_is_bit_for_bit(config: PretrainConfig, tmp_path: Path) -> None:
    halves_equal_the_whole(change(config, "pkm", values_lr_mult=3.0, values_wd_mult=0.0), tmp_path / "checkpoint")


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_compat")
def test_other_factors_count_after_a_resume(tmp_path: Path) -> None:
    """Equal factors, with which the group's numbers are those of the other weights, and others."""
    other = change(ZERO, "pkm", values_lr_mult=0.25, values_wd_mult=2.0, topk=3)
    assert {name for name, value in vars(other.pkm).items() if value != getattr(ZERO.pkm, name)} == set(
        marked(PKMConfig, MAY_CHANGE)
    )
    with megatron_run(ZERO.parallel, ZERO.training) as world:
        engine = MegatronEngine(ZERO, VOCABULARY, world.device)
        for _ in range(3):
            engine.train_step(batches(0))
        engine.save(tmp_path)
        again = MegatronEngine(other, VOCABULARY, world.device)
        again.load(tmp_path, weights_only=False)
        assert again.chunks[0].module.decoder.layers[0].mlp.topk == 3
        again.train_step(batches(0))
        own, others = values_of(again), again.optimizer.param_groups[0]
        assert own["lr"] == pytest.approx(0.25 * others["lr"]) and own["weight_decay"] == pytest.approx(0.2)


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize(
    ("before", "after"),
    [(BASE, ZERO), pytest.param(ZERO, BASE, marks=pytest.mark.slow)],
    ids=["dense first", "static first"],
)
def test_a_new_model_takes_the_other_weights(before: PretrainConfig, after: PretrainConfig, tmp_path: Path) -> None:
    """With --finetune: what the checkpoint has of another kind of MLP stays there, and the new one as it was drawn."""
    with megatron_run(ZERO.parallel, ZERO.training) as world:
        engine = MegatronEngine(before, VOCABULARY, world.device)
        engine.train_step(batches(0))
        engine.train_step(batches(0))
        engine.save(tmp_path)
        fresh = MegatronEngine(after, VOCABULARY, world.device)
        drawn = {name: weight.detach().clone() for name, weight in fresh.chunks[0].named_parameters()}
        fresh.load(tmp_path, weights_only=True)
        saved = dict(engine.chunks[0].named_parameters())
        for name, weight in fresh.chunks[0].named_parameters():
            assert torch.equal(weight, drawn[name] if "layers.0.mlp" in name else saved[name]), name
        assert torch.isfinite(torch.tensor(fresh.train_step(batches(0)).losses.loss))
