"""Confidence intervals against their defining equation."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_fwpkm.evaluation.confidence import wilson_interval


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
