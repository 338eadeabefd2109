"""The AdamW of Transformer Engine, Apex or torch: which one Megatron steps, and that all step alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from tests.engines import test_engine
from tests.engines.test_engine import VOCABULARY, batches, change, halves_equal_the_whole, state_of
from tests.libraries.pretended import FusedAdam, pretended

NAMES = ("transformer_engine", "apex")
BASE = change(test_engine.BASE, "implementation", transformer_impl="local")
"""The libraries are pretended as far as their optimizers go."""


def stepped(config: PretrainConfig, *names: str, steps: int = 6) -> tuple[type, dict[str, torch.Tensor], list[float]]:
    """The class of the optimizer, the state and the losses after some steps, where these libraries are installed."""
    with pretended(*names), megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        source = batches(0)
        losses = [engine.train_step(source).losses.loss for _ in range(steps)]
        return type(engine.optimizer.chained_optimizers[0].optimizer), state_of(engine), losses


@pytest.mark.parametrize(
    ("names", "wanted", "cls"),
    [
        ((), "auto", torch.optim.AdamW),
        (("apex",), "auto", FusedAdam),
        (NAMES, "auto", FusedAdam),
        (NAMES, "torch", torch.optim.AdamW),
        (NAMES, "apex", FusedAdam),
    ],
)
def test_megatron_steps_the_adam_that_was_chosen(names: tuple[str, ...], wanted: str, cls: type) -> None:
    config = change(BASE, "optimizer", adam_implementation=wanted)
    assert stepped(config, *names, steps=1)[0] is cls


@pytest.mark.parametrize(
    ("bf16", "distributed", "steps"),
    [
        pytest.param(False, False, 6, marks=pytest.mark.slow),
        (False, True, 6),
        pytest.param(True, True, 2, marks=pytest.mark.slow),
    ],
)
def test_a_fused_adam_steps_as_torchs_does(bf16: bool, distributed: bool, steps: int) -> None:
    """In bfloat16 up to the first weight that moves: where one is rounded to the other side, the runs part."""
    config = change(change(BASE, "training", bf16=bf16), "parallel", use_distributed_optimizer=distributed)
    _, torchs, losses = stepped(config, steps=steps)
    fused_class, fused, fused_losses = stepped(config, "apex", steps=steps)
    assert fused_class is FusedAdam
    assert fused_losses == pytest.approx(losses, rel=1e-5)
    compared = [name for name in fused if name.startswith("optimizer")]
    assert len(compared) > 30 and not any(name.endswith("/step") for name in compared)
    for name in compared:
        torch.testing.assert_close(fused[name], torchs[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "bf16", "distributed"),
    [
        pytest.param("apex", False, False, marks=pytest.mark.slow),
        pytest.param(NAMES[0], True, False, marks=pytest.mark.slow),
        pytest.param("apex", True, True, marks=pytest.mark.slow),
        (NAMES[0], True, True),
    ],
)
def test_a_run_with_a_fused_adam_resumes_bit_for_bit(name: str, bf16: bool, distributed: bool, tmp_path: Path) -> None:
    config = change(change(BASE, "training", bf16=bf16), "parallel", use_distributed_optimizer=distributed)
    with pretended(name):
        halves_equal_the_whole(config, tmp_path / "checkpoint")


def save_after_four_steps(config: PretrainConfig, folder: Path, *names: str) -> None:
    with pretended(*names), megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        source = batches(0)
        for _ in range(4):
            engine.train_step(source)
        folder.mkdir()
        engine.save(folder)


def go_on(config: PretrainConfig, folder: Path, *names: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and optimizer states of four more steps."""
    with pretended(*names), megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        assert engine.load(folder, weights_only=False) == []
        source = batches(16)
        losses = [engine.train_step(source).losses.loss for _ in range(4)]
        state = state_of(engine)
        return losses, {name: state[name] for name in state if "/main" in name}


@pytest.mark.parametrize(
    ("bf16", "distributed"),
    [(False, False), *(pytest.param(True, distributed, marks=pytest.mark.slow) for distributed in (False, True))],
)
@pytest.mark.parametrize(
    ("first", "then"), [((), ("apex",)), pytest.param(("transformer_engine",), (), marks=pytest.mark.slow)]
)
def test_a_checkpoint_continues_with_the_adam_of_another_library(
    first: tuple[str, ...], then: tuple[str, ...], bf16: bool, distributed: bool, tmp_path: Path
) -> None:
    """The count of steps, which corrects the moments, moves from the parameters to their groups and back."""
    config = change(change(BASE, "training", bf16=bf16), "parallel", use_distributed_optimizer=distributed)
    config = change(config, "model", hidden_dropout=0.0, attention_dropout=0.0)
    save_after_four_steps(config, tmp_path / "checkpoint", *first)
    losses, weights = go_on(config, tmp_path / "checkpoint", *first)
    other_losses, other_weights = go_on(config, tmp_path / "checkpoint", *then)
    assert other_losses == pytest.approx(losses, rel=1e-5 if not bf16 else 1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, rtol=1e-4, atol=2e-3 if bf16 else 1e-6)
