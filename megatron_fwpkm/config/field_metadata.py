"""What a field of a configuration says beside its type and default: its range, and what a resumed run does with it.

An option is declared in one place:

    lr: Annotated[float, Above(0), MAY_CHANGE, SCHEDULE] = 1e-3
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache
from typing import Any, Protocol, runtime_checkable

_LARGEST_COUNT = 10**12
"""Of an integer without AtMost: beyond it, what is counted never ends."""


@runtime_checkable
class ValueRange(Protocol):
    """The values that a number may have. A field that may be None is checked when it is set."""

    def demand(self, value: float) -> str | None:
        """`be at least 1`, where a value is out of the range."""


@dataclass(frozen=True)
class AtLeast:
    """Not below `low`."""

    low: float

    def demand(self, value: float) -> str | None:
        """What is demanded of `value`, such as `be at least 1`; None where it is within the range."""
        return f"be at least {self.low}" if value < self.low else None


@dataclass(frozen=True)
class Above:
    """Greater than `low`."""

    low: float

    def demand(self, value: float) -> str | None:
        """What is demanded of `value`, such as `be at least 1`; None where it is within the range."""
        return f"be greater than {self.low}" if value <= self.low else None


@dataclass(frozen=True)
class AtMost:
    """Not above `high`, beyond which what is computed is not finite for long, or nothing is ever written;
    hf/config_checks.py says the same."""

    high: float

    def demand(self, value: float) -> str | None:
        """What is demanded of `value`, such as `be at least 1`; None where it is within the range."""
        return f"be at most {self.high}" if value > self.high else None


@dataclass(frozen=True)
class Between:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def demand(self, value: float) -> str | None:
        """What is demanded of `value`, such as `be at least 1`; None where it is within the range."""
        return None if self.low <= value <= self.high else f"be between {self.low} and {self.high}"


@dataclass(frozen=True)
class BelowOne:
    """From 0 to below 1."""

    def demand(self, value: float) -> str | None:
        """What is demanded of `value`, such as `be at least 1`; None where it is within the range."""
        return None if 0 <= value < 1 else "be at least 0 and below 1"


class OnResume(Enum):
    """What a resumed run does if the option had another value in the checkpoint."""

    ARCHITECTURE = "architecture"
    """Refused: the weights fit, and mean the same, with the saved value only."""
    SAME_RUN = "same run"
    """Refused, but another run may start from the weights with another value."""
    MAY_CHANGE = "free"
    """The new value counts from there on, which is announced (tests/training/test_resume_options.py)."""
    NOT_COMPARED = "not compared"
    """It changes nothing of what is learned, or something else is compared instead."""


class Mark(Enum):
    """Sets of options that other rooms ask for."""

    SCHEDULE = "--use-checkpoint-opt-param-scheduler takes it, --no-override-opt-param-scheduler compares it"
    TOKENIZER = "says which tokenizer it is, whose identity is compared at a resume instead"
    TAKEN_UNLESS_GIVEN = "--use-checkpoint-args takes it where nothing is given; Megatron-LM leaves such sizes as given"
    TAKEN_WITH_SHAPE = "--use-checkpoint-args takes it, too, although weights of any value fit"
    TRAINING_ONLY = "of no use after training: an export does not have it"


ARCHITECTURE, SAME_RUN, MAY_CHANGE, NOT_COMPARED = OnResume
SCHEDULE, TOKENIZER, TAKEN_UNLESS_GIVEN, TAKEN_WITH_SHAPE, TRAINING_ONLY = Mark


@cache
def field_metadata(cls: type) -> dict[str, tuple[Any, ...]]:
    """What `Annotated` says of every field of a dataclass, by its name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {item.name: getattr(hints[item.name], "__metadata__", ()) for item in fields(cls)}


def marked(cls: type, mark: Mark | OnResume) -> tuple[str, ...]:
    """The fields of a dataclass that have a mark, in order."""
    return tuple(name for name, metadata in field_metadata(cls).items() if mark in metadata)


def on_resume(cls: type, name: str) -> OnResume:
    """What a field says of resumed runs, which every option of pretrain.py must."""
    found = [item for item in field_metadata(cls)[name] if isinstance(item, OnResume)]
    assert len(found) == 1, f"{cls.__name__}.{name} does not say once what a resumed run does with another value"
    return found[0]


def unmet_demand(metadata: tuple[Any, ...], value: object) -> str | None:
    """`be at least 1`, where a value is a number out of its field's range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return "be a finite number"
    ranges = [item for item in metadata if isinstance(item, ValueRange)]
    if isinstance(value, int) and not any(isinstance(item, AtMost) for item in ranges):
        ranges.append(AtMost(_LARGEST_COUNT))
    return next((found for item in ranges if (found := item.demand(value)) is not None), None)


def values_out_of_range(config: object, prefix: str = "") -> Iterator[str]:
    """A sentence for every number of a dataclass that is out of its range, looked at alone.

    `prefix` (like `fwpkm-`) begins the names of its flags.
    """
    cls: type = type(config)
    for name, metadata in field_metadata(cls).items():
        value = getattr(config, name)
        demand = unmet_demand(metadata, value)
        if demand is not None:
            yield f"--{prefix}{name.replace('_', '-')} {value} must {demand}"
