"""The schedule against closed forms, and its errors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from megatron_fwpkm.config import OptimizerConfig
from megatron_fwpkm.engines.learning_rate import build_scheduler, make_schedule


class OneGroup:
    """The part of an optimizer that a scheduler sees."""

    def __init__(self) -> None:
        self.param_groups = [{"lr": 0.0, "weight_decay": 0.0, "wd_mult": 1.0}]


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    optimizer = OneGroup()
    scheduler = build_scheduler(optimizer, config, steps)  # type: ignore[arg-type]
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step(1)
    return seen


BASE = OptimizerConfig(lr=1.0, min_lr=0.1, lr_warmup_iters=4, weight_decay=0.1)


def test_warmup_then_cosine() -> None:
    seen = rates(BASE, 20)
    assert seen[:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0], abs=1e-15)
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (i - 4) / 16)) for i in range(4, 20)]
    assert seen[4:] == pytest.approx(expected, rel=1e-14)


def test_linear_and_constant() -> None:
    linear = rates(replace(BASE, lr_decay_style="linear"), 20)
    assert linear[4:] == pytest.approx([1.0 - 0.9 * (i - 4) / 16 for i in range(4, 20)], rel=1e-14)
    assert rates(replace(BASE, lr_decay_style="constant"), 20)[4:] == [1.0] * 16


def test_wsd_holds_and_then_decays() -> None:
    seen = rates(replace(BASE, lr_decay_style="WSD", lr_wsd_decay_style="linear"), 20)  # final decay: 20 // 5 = 4
    assert seen[4:17] == [1.0] * 13
    assert seen[17:] == pytest.approx([0.1 + 0.9 * (1 - i / 4) for i in (1, 2, 3)], rel=1e-14)
    sqrt = rates(replace(BASE, lr_decay_style="WSD", lr_wsd_decay_iters=8), 20)
    assert sqrt[16] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.5)), rel=1e-14)


def test_decay_ends_before_the_run() -> None:
    assert rates(replace(BASE, lr_decay_iters=10), 20)[11:] == [0.1] * 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr_warmup_iters": 20}, "--lr-warmup-iters 20 must be at least 0 and below --lr-decay-iters 20"),
        ({"min_lr": 2.0}, r"--min-lr 2.0 must be between 0 and --lr 1.0"),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 17}, "--lr-wsd-decay-iters 17 must be at least 1 and fit"),
        ({"lr_decay_iters": 0, "lr_warmup_iters": 0}, "--lr-decay-iters 0 must be at least 1"),
    ],
)
def test_impossible_schedules(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule(replace(BASE, **change), 20)  # type: ignore[arg-type]
