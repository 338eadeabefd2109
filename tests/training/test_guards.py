"""Guards name the step, the layer and what to try."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.training.guards import BASELINE_OBSERVATIONS, MemoryGuard, TrainingDivergedError, check_finite


def with_factor(factor: float) -> PretrainConfig:
    base = PretrainConfig()
    memories = replace(base.fwpkm, layer_numbers=(3, 7))
    return replace(base, fwpkm=memories, training=replace(base.training, divergence_factor=factor))


@pytest.mark.parametrize(
    ("numbers", "named"),
    [({"loss": math.nan, "gradient norm": 1.0}, "loss"), ({"gradient norm": math.inf}, "gradient norm")],
)
def test_not_finite_stops(numbers: dict[str, float], named: str) -> None:
    with pytest.raises(TrainingDivergedError, match=rf"iteration 7: the {named} is (nan|inf).*smaller --lr"):
        check_finite(7, numbers, PretrainConfig(), None)
    check_finite(7, {"loss": 1.0, "gradient norm": 0.5}, PretrainConfig(), None)


@pytest.mark.parametrize(
    ("clip_grad", "bf16", "kept", "advice"),
    [
        (1.0, False, None, "nan. Try a smaller --lr or a longer --lr-warmup-iters"),
        (0.0, False, None, "nan. Try a smaller --lr, a longer --lr-warmup-iters, or --clip-grad 1.0"),
        (3.0, True, "runs/x/iter_0000005", "nan. The checkpoint runs/x/iter_0000005 is intact. Try a smaller --lr, "
         "a longer --lr-warmup-iters, --clip-grad 1.0, or --no-bf16"),
    ],
)  # fmt: skip
def test_only_advice_that_applies(clip_grad: float, bf16: bool, kept: str | None, advice: str) -> None:
    base = PretrainConfig()
    config = replace(
        base, optimizer=replace(base.optimizer, clip_grad=clip_grad), training=replace(base.training, bf16=bf16)
    )
    with pytest.raises(TrainingDivergedError) as caught:
        check_finite(7, {"loss": math.nan}, config, kept)
    assert str(caught.value) == f"iteration 7: the loss is {advice}"


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "Try a smaller --fwpkm-inner-lr, --fwpkm-reset step, or a smaller --lr"),
        ({"normalize_targets": False, "reset": "document"},
         "Try a smaller --fwpkm-inner-lr, --fwpkm-normalize-targets, or a smaller --lr"),
    ],
)  # fmt: skip
def test_only_advice_that_applies_to_a_memory(changes: dict[str, Any], advice: str) -> None:
    config = replace(PretrainConfig(), fwpkm=replace(PretrainConfig().fwpkm, layer_numbers=(7,), **changes))
    with pytest.raises(TrainingDivergedError) as caught:
        MemoryGuard(config).check(1, {7: math.inf}, {7: True}, "runs/x/iter_0000005")
    assert str(caught.value).endswith(
        f"(memorization loss inf). The checkpoint runs/x/iter_0000005 is intact. {advice}"
    )


def test_diverging_memory_is_measured_against_its_early_median() -> None:
    guard = MemoryGuard(with_factor(10.0))
    for iteration in range(BASELINE_OBSERVATIONS):
        guard.check(iteration, {3: 100.0 if iteration == 0 else 1.0, 7: 5.0}, {}, None)
    guard.check(30, {3: 9.9, 7: 49.0}, {}, None)
    with pytest.raises(
        TrainingDivergedError, match="iteration 31: the memory of layer 3 diverges.*10.1.*--fwpkm-inner-lr"
    ):
        guard.check(31, {3: 10.1, 7: 49.0}, {}, None)


def test_table_with_nan_is_named_at_once() -> None:
    with pytest.raises(TrainingDivergedError, match="the memory of layer 7 is not finite"):
        MemoryGuard(with_factor(10.0)).check(1, {3: 1.0, 7: 1.0}, {3: True, 7: False}, None)


def test_the_yardstick_survives_a_resume() -> None:
    guard = MemoryGuard(with_factor(2.0))
    for iteration in range(BASELINE_OBSERVATIONS):
        guard.check(iteration, {3: 1.0}, {}, None)
    resumed = MemoryGuard(with_factor(2.0))
    resumed.load_state_dict(guard.state_dict())
    with pytest.raises(TrainingDivergedError, match="layer 3"):
        resumed.check(21, {3: 2.5}, {}, None)
