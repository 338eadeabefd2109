"""What fields say of themselves: ranges, and what a resumed run does with another value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from megatron_fwpkm.config.field_metadata import (
    MAY_CHANGE,
    SAME_RUN,
    SCHEDULE,
    Above,
    AtLeast,
    AtMost,
    BelowOne,
    Between,
    OnResume,
    field_metadata,
    marked,
    on_resume,
    unmet_demand,
    values_out_of_range,
)
from megatron_fwpkm.config.loading import option_groups


@dataclass(frozen=True)
class Sample:
    """Fields with and without metadata."""

    count: Annotated[int, AtLeast(1), MAY_CHANGE, SCHEDULE] = 1
    share: Annotated[float | None, BelowOne(), SAME_RUN] = None
    name: str = "x"


def test_every_option_says_what_a_resumed_run_does() -> None:
    """A new option declares it once; MAY_CHANGE needs a case in tests/training/test_resume_options.py."""
    for _, cls, found in option_groups():
        for option in found:
            assert isinstance(on_resume(cls, option.field_name), OnResume)


def test_a_field_that_does_not_say_it_is_our_bug() -> None:
    assert on_resume(Sample, "count") is MAY_CHANGE
    with pytest.raises(AssertionError, match="Sample.name does not say once what a resumed run does"):
        on_resume(Sample, "name")


def test_marks_are_found() -> None:
    assert marked(Sample, SCHEDULE) == ("count",)
    assert marked(Sample, SAME_RUN) == ("share",)
    assert field_metadata(Sample)["name"] == ()


def test_numbers_out_of_range_are_told_by_their_flags() -> None:
    assert list(values_out_of_range(Sample())) == []
    assert list(values_out_of_range(Sample(0, 1.0), "my-")) == [
        "--my-count 0 must be at least 1",
        "--my-share 1.0 must be at least 0 and below 1",
    ]


@pytest.mark.parametrize(
    ("metadata", "good", "bad", "demand"),
    [
        ((AtLeast(2),), 2, 1, "be at least 2"),
        ((Above(2),), 3, 2, "be greater than 2"),
        ((AtMost(2**70),), 2**70, 2**70 + 1, f"be at most {2**70}"),
        ((Between(0, 2),), 0, -1, "be between 0 and 2"),
        ((Between(0, 2),), 2, 3, "be between 0 and 2"),
        ((BelowOne(),), 0.999, 1, "be at least 0 and below 1"),
        ((Above(0), Between(0, 1)), 1, 0, "be greater than 0"),
        ((), 10**12, 10**12 + 1, f"be at most {10**12}"),
        ((), 1e300, float("inf"), "be a finite number"),
        ((AtLeast(1),), True, float("nan"), "be a finite number"),
    ],
)
def test_ranges(metadata: tuple[object, ...], good: float, bad: float, demand: str) -> None:
    assert unmet_demand(metadata, good) is None
    assert unmet_demand(metadata, bad) == demand
