"""Probabilistic sliding-window attention: when steps see windows, what they compute then, and what is left alone."""

# ruff: noqa: E501 - a table of whole messages is read more easily than one of pieces
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.pswa import count_windowed, is_windowed
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from megatron_fwpkm.layers.training_window import NarrowedInTraining
from tests.config.test_validation import config_of
from tests.engines.test_engine import BASE, VOCABULARY, assert_same_state, batches, change, state_of

# Without dropout, whose masks have the shape of what attention sees.
PLAIN = change(BASE, "model", hidden_dropout=0.0, attention_dropout=0.0)
HALF = change(change(PLAIN, "model", window_size=(3, 0)), "fwpkm", pswa_probability=0.5)
ALWAYS = change(HALF, "fwpkm", pswa_probability=1.0)
SLIDING = change(PLAIN, "model", layer_pattern="swa", window_size=(3, 0))


def drawn(config: PretrainConfig, steps: int) -> list[bool]:
    return [is_windowed(config, step) for step in range(steps)]


def test_draws_have_their_probability_and_depend_on_seed_and_step_alone() -> None:
    config = change(HALF, "fwpkm", pswa_probability=0.9)
    found = drawn(config, 10_000)
    assert abs(sum(found) / 10_000 - 0.9) < 4 * (0.9 * 0.1 / 10_000) ** 0.5
    assert found == drawn(config, 10_000) != drawn(change(config, "training", seed=5), 10_000)
    pairs = sum(one and other for one, other in zip(found, found[1:], strict=False))
    assert pairs / 9_999 == pytest.approx(0.81, abs=0.02)  # neighbours are drawn independently
    assert count_windowed(config, range(50, 60)) == sum(found[50:60])
    assert not any(drawn(PLAIN, 100)) and all(drawn(ALWAYS, 100))


def numbers(config: PretrainConfig, steps: int = 3) -> tuple[list[float], float, float]:
    """Losses of some steps, and of evaluations before and after them."""
    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        before = engine.evaluate(batches(50), 1).loss
        source = batches(0)
        losses = [engine.train_step(source).losses.loss for _ in range(steps)]
        return losses, before, engine.evaluate(batches(50), 1).loss


def test_a_drawn_step_is_that_of_sliding_attention_and_evaluation_sees_everything() -> None:
    plain, sliding, always = numbers(PLAIN), numbers(SLIDING), numbers(ALWAYS)
    assert always[0] == sliding[0] != plain[0]
    assert always[1] == plain[1] != sliding[1]
    assert always[2] not in (plain[2], sliding[2])  # its weights are those of windows, and it sees everything


@pytest.mark.parametrize("training", [pytest.param({}, marks=pytest.mark.slow), {"recompute_granularity": "selective"}])
@pytest.mark.slow
def test_a_resumed_run_draws_what_the_uninterrupted_one_draws(tmp_path: Path, training: dict[str, Any]) -> None:
    config = change(HALF, "training", **training)
    assert drawn(config, 8) == [True, True, True, True, False, False, True, False]
    with megatron_run(config.parallel, config.training) as world:
        whole, source = MegatronEngine(config, VOCABULARY, world.device), batches(0)
        for _ in range(3):
            whole.train_step(source)
        whole.save(tmp_path / "checkpoint")
        expected = [whole.train_step(source).losses.loss for _ in range(3)]
        rest, source = MegatronEngine(config, VOCABULARY, world.device), batches(12)
        rest.load(tmp_path / "checkpoint", weights_only=False)
        losses, windows = [], []
        for _ in range(3):
            losses.append(rest.train_step(source).losses.loss)
            windows.append({m.training_window for m in rest.chunks[0].modules() if isinstance(m, NarrowedInTraining)})
        assert losses == expected and windows == [{3}, {None}, {None}]
        assert_same_state(state_of(rest), state_of(whole))


@pytest.mark.slow
def test_the_windows_change_nothing_else() -> None:
    """The data, the weights that training begins with and the random numbers of dropout are those without them."""
    states, random = [], []
    for config in (BASE, replace(BASE, fwpkm=ALWAYS.fwpkm, model=replace(BASE.model, window_size=(23, 0)))):
        with megatron_run(config.parallel, config.training) as world:
            engine = MegatronEngine(config, VOCABULARY, world.device)
            engine.train_step(batches(0))  # its windows are as long as the sequence
            states.append(state_of(engine))
            random.append(torch.get_rng_state())
    assert_same_state(*states)
    assert torch.equal(*random)


PSWA = "--fwpkm-pswa-probability 0.9 --window-size 511,0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (PSWA, None),
        (f"{PSWA} --layer-pattern swa,fa", None),
        (f"{PSWA} --layer-pattern swa", "--fwpkm-pswa-probability 0.9 has no effect with --layer-pattern swa, which has no layer with full attention (fa)"),
        ("--fwpkm-pswa-probability 0.9", "--fwpkm-pswa-probability 0.9 needs the window that full attention then sees: give --window-size LEFT,0"),
        ("--fwpkm-pswa-probability 1.5", "--fwpkm-pswa-probability 1.5 must be between 0 and 1"),
        (f"{PSWA} --attention-backend te", "--attention-backend te keeps its windows, but --fwpkm-pswa-probability 0.9 changes them from step to step"),
        ("--window-size 511,0", "--window-size 511,0 has no effect"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(words: str, message: str | None) -> None:
    found = problems(config_of(*words.split()))
    assert (found == []) if message is None else (len(found) == 1 and message in found[0]), found
