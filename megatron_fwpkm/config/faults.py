"""Faults of a running job: how they are noticed, and what the run does about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .field_metadata import NOT_COMPARED, AtLeast, AtMost


@dataclass(frozen=True)
class FaultConfig:
    """Hangs, slow ranks and numbers that are not finite."""

    watchdog_timeout: Annotated[float | None, AtLeast(1), AtMost(10**7), NOT_COMPARED] = None
    """Seconds without progress (a step, a save, a batch of an evaluation) after which a rank writes the stacks of all
    its threads to --log-dir and the run ends, naming the ranks that are behind (default: no limit, because only you
    know your longest step and save)."""
