"""Confidence intervals of measured numbers."""

from __future__ import annotations

import math

_NORMAL_975 = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion: honest at 0 and 1 and for few trials; (0, 1) without any."""
    if not trials:
        return 0.0, 1.0
    z2 = _NORMAL_975**2
    centre = (successes + z2 / 2) / (trials + z2)
    half = _NORMAL_975 / (trials + z2) * math.sqrt(successes * (trials - successes) / trials + z2 / 4)
    low, high = centre - half, centre + half
    # Where the root is the proportion itself, 0 or 1, rounding may put it a hair beyond.
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)
