"""Faults of a running job: how they are noticed, and what the run does about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, Above, AtLeast, AtMost


@dataclass(frozen=True)
class FaultConfig:
    """Hangs, slow ranks and numbers that are not finite."""

    watchdog_timeout: Annotated[float | None, AtLeast(1), AtMost(10**7), NOT_COMPARED] = None
    """Seconds without progress (a step, a save, a batch of an evaluation) after which a rank writes the stacks of all
    its threads to --log-dir and the run ends, naming the ranks that are behind (default: no limit, because only you
    know your longest step and save)."""
    log_straggler: Annotated[bool, NOT_COMPARED] = False
    """At every --log-interval, compare the time that ranks take for reading data and for forward passes, and name those
    that hold up the others."""
    straggler_threshold: Annotated[float, Above(1), NOT_COMPARED] = 1.2
    """With --log-straggler: a rank is named when it takes more than so many times the median of its pipeline stage."""
    on_nan: Annotated[Literal["stop", "skip", "rewind"], MAY_CHANGE] = "stop"
    """What to do when the loss, the gradient norm or a memory is not finite. stop: end the run; skip: undo the step,
    its writes to the memories included; rewind: continue from the newest checkpoint without the data since then."""
    on_nan_limit: Annotated[int, AtLeast(1), MAY_CHANGE] = 10
    """Number of skipped steps and rewinds, also those of --loss-spike-factor, that the whole run may have; the next one
    ends it."""
    loss_spike_factor: Annotated[float | None, Above(1), MAY_CHANGE] = None
    """Rewind as with --on-nan rewind when the loss exceeds the median of its last values by this factor (default:
    never)."""
    loss_spike_window: Annotated[int, AtLeast(1), AtMost(10**5), MAY_CHANGE] = 100
    """With --loss-spike-factor: number of iterations over which the median is taken; before so many, nothing is a
    spike."""
    loss_spike_steps: Annotated[int, AtLeast(1), MAY_CHANGE] = 5
    """With --loss-spike-factor: number of consecutive iterations with such a loss that count as a spike."""
