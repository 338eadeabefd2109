"""Confidence intervals of measured numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NORMAL_975 = 1.959963984540054
_STUDENT_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""For 1 to 10 degrees of freedom; above them a series in their reciprocal is exact enough."""


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion: honest at 0 and 1 and for few trials; (0, 1) without any.

    Trials may succeed in part: no number between 0 and 1 varies more than a proportion with the same mean, so the
    interval of their sum is then wider than necessary.
    """
    if not trials:
        return 0.0, 1.0
    z2 = _NORMAL_975**2
    centre = (successes + z2 / 2) / (trials + z2)
    half = _NORMAL_975 / (trials + z2) * math.sqrt(successes * (trials - successes) / trials + z2 / 4)
    low, high = centre - half, centre + half
    # Where the root is the proportion itself, 0 or 1, rounding may put it a hair beyond.
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval, which is (nan, nan) where there are too few numbers for one."""

    mean: float
    low: float
    high: float


def ratio_interval(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """Mean per item of items that come in blocks, with a Student interval that takes the blocks as independent.

    Args:
        sums: of every block.
        counts: its number of items, above 0; a block whose items count more or less has both times its weight.
    """
    blocks, total = len(sums), math.fsum(counts)
    mean = math.fsum(sums) / total
    if blocks < 2:
        return Estimate(mean, math.nan, math.nan)
    squares = math.fsum((block - mean * count) ** 2 for block, count in zip(sums, counts, strict=True))
    half = student_975(blocks - 1) * math.sqrt(blocks / (blocks - 1) * squares) / total
    return Estimate(mean, mean - half, mean + half)


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean of some numbers, such as one per seed, with their Student interval."""
    return ratio_interval(values, [1] * len(values))


def student_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's t distribution, to 5e-4."""
    if degrees <= len(_STUDENT_975):
        return _STUDENT_975[degrees - 1]
    z = _NORMAL_975
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2) + third


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test, from the pairs of which only one is correct.

    If both were equally good, each of these pairs would favour either with probability 1/2; 1 where there are none.
    """
    pairs = only_first + only_second
    tail = sum(math.comb(pairs, number) for number in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**pairs)


def bootstrap_interval(values: Sequence[float], *, seed: int = 0, draws: int = 10_000) -> Estimate:
    """Mean of independent values with the 95 % percentile interval of its bootstrap; a seed always gives the same one.

    Values that occur often are drawn together, so that many samples of few different scores take no time.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    means = np.random.default_rng(seed).multinomial(len(values), counts / len(values), draws) @ distinct / len(values)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(math.fsum(values) / len(values), float(low), float(high))
