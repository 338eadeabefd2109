"""Confidence intervals against their defining equation."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_fwpkm.evaluation.confidence import (
    mean_interval,
    ratio_interval,
    student_975,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # roots of the score equation, with 20 digits
        (8, 10, 0.49016247153664170326, 0.94331784854562474511),
        (0, 50, 0.0, 0.07134759913335872978),
        (50, 50, 0.92865240086664127024, 1.0),
        (45, 50, 0.786397685625203432, 0.95652423506810958418),
    ],
)
def test_wilson_interval(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-14)


@example(0, 143)
@example(143, 0)
@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_bounds_solve_the_score_equation(successes, extra):
    trials = successes + extra
    p = successes / trials
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= p <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(p - bound) == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / trials))


def test_nothing_is_known_without_trials():
    assert wilson_interval(0, 0) == (0, 1)


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (30, 2.0423)])
def test_student_quantiles(degrees, quantile):
    """Published to four decimals."""
    assert student_975(degrees) == pytest.approx(quantile, abs=5e-4)


def test_mean_interval_is_students():
    found = mean_interval([1.0, 2.0, 4.0])
    half = 4.3027 * math.sqrt(7 / 3 / 3)  # the variance of the three is 7/3
    assert (found.mean, found.low, found.high) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half), abs=1e-9)


def test_blocks_of_unequal_size_count_by_their_items():
    found = ratio_interval([10.0, 6.0], [10, 2])
    residual = 10 - 16 / 12 * 10
    half = 12.7062 * math.sqrt(2 * 2 * residual**2) / 12
    assert (found.mean, found.high - found.mean) == pytest.approx((16 / 12, half), abs=1e-9)
    alone = ratio_interval([3.0], [2])
    assert alone.mean == 1.5 and math.isnan(alone.low) and math.isnan(alone.high)
