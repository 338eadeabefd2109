"""Which cases of a test `make test` runs, and which wait for `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, settings


def product_cases(*axes: Iterable[Any], quick: Callable[..., bool]) -> list[Any]:
    """Every combination of `axes` for parametrize; those for which `quick` is false are slow.

    One case of every promise stays quick: the one that costs least.
    """
    return [pytest.param(*values, marks=() if quick(*values) else pytest.mark.slow) for values in product(*axes)]


def examples(quick: int, more: int, *suppressed: HealthCheck) -> settings:
    """Settings of a property test: `quick` examples, and `more` where `make test-all` looks for new ones.

    Hypothesis does not complain of `suppressed`, nor of slow examples.
    """
    number = more if settings.get_current_profile_name() == "explore" else quick
    return settings(max_examples=number, suppress_health_check=[HealthCheck.too_slow, *suppressed])
