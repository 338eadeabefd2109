"""Guards name the step, the layer and what to try."""

from __future__ import annotations

import math

import pytest

from megatron_fwpkm.training.guards import BASELINE_OBSERVATIONS, MemoryGuard, TrainingDivergedError, check_finite


@pytest.mark.parametrize(
    ("numbers", "named"),
    [({"loss": math.nan, "gradient norm": 1.0}, "loss"), ({"gradient norm": math.inf}, "gradient norm")],
)
def test_not_finite_stops(numbers: dict[str, float], named: str) -> None:
    with pytest.raises(TrainingDivergedError, match=rf"iteration 7: the {named} is (nan|inf).*smaller --lr"):
        check_finite(7, numbers)
    check_finite(7, {"loss": 1.0, "gradient norm": 0.5})


def test_diverging_memory_is_measured_against_its_early_median() -> None:
    guard = MemoryGuard(10.0)
    for iteration in range(BASELINE_OBSERVATIONS):
        guard.check(iteration, {3: 100.0 if iteration == 0 else 1.0, 7: 5.0}, {})
    guard.check(30, {3: 9.9, 7: 49.0}, {})
    with pytest.raises(
        TrainingDivergedError, match="iteration 31: the memory of layer 3 diverges.*10.1.*--fwpkm-inner-lr"
    ):
        guard.check(31, {3: 10.1, 7: 49.0}, {})


def test_table_with_nan_is_named_at_once() -> None:
    with pytest.raises(TrainingDivergedError, match="the memory of layer 7 is not finite"):
        MemoryGuard(10.0).check(1, {3: 1.0, 7: 1.0}, {3: True, 7: False})


def test_the_yardstick_survives_a_resume() -> None:
    guard = MemoryGuard(2.0)
    for iteration in range(BASELINE_OBSERVATIONS):
        guard.check(iteration, {3: 1.0}, {})
    resumed = MemoryGuard(2.0)
    resumed.load_state_dict(guard.state_dict())
    with pytest.raises(TrainingDivergedError, match="layer 3"):
        resumed.check(21, {3: 2.5}, {})
