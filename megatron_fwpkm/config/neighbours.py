"""Numbers that a message can offer instead of one that does not divide another."""

from __future__ import annotations

import math

from .derived import round_up


def near_multiples(value: int, unit: int) -> str:
    """`504 or 512`: the multiples of `unit` around `value`."""
    above = round_up(value, unit)
    below = above - unit
    return f"{below} or {above}" if below > 0 else str(above)


def near_divisors(value: int, whole: int) -> str:
    """`2 or 4`: the divisors of `whole` around `value`."""
    small = [number for number in range(1, math.isqrt(whole) + 1) if whole % number == 0]
    divisors = small + [whole // number for number in small]
    below = max((number for number in divisors if number < value), default=None)
    above = min((number for number in divisors if number > value), default=None)
    return " or ".join(str(number) for number in (below, above) if number is not None)
