"""What a run does about numbers that are not finite and spikes of the loss: skip the step, or go back and leave data
out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Protocol

from ..config import PretrainConfig
from ..engines.base import Batch, StepResult
from .checkpointing import TrainingProgress
from .guards import LossSpikeError, NotFiniteError, TrainingDivergedError
from .metrics import JsonRecord

logger = logging.getLogger("megatron_fwpkm")


class EarlierCheckpoints(Protocol):
    """What going back needs of the run's checkpoints."""

    def go_back(self, before: int) -> TrainingProgress | None:
        """Load the newest checkpoint of --save from before an iteration, and continue from it; None without one."""

    def leave_data_out(self, progress: TrainingProgress) -> None:
        """Record in the newest checkpoint which data a run that continues from it leaves out."""


class Recovery:
    """Decides about --on-nan and --loss-spike-factor; the same on every rank, because the numbers are."""

    def __init__(
        self,
        config: PretrainConfig,
        checkpoints: EarlierCheckpoints,
        training_data: Callable[[TrainingProgress], Iterable[Batch]],
    ) -> None:
        """`training_data` opens the data where a progress stands."""
        self._faults = config.faults
        self._checkpoints = checkpoints
        self.training_data = training_data

    def count_skip(self, progress: TrainingProgress, result: StepResult) -> str:
        """What to say about a step that was undone; raises NotFiniteError when there were too many."""
        progress.recoveries += 1
        said = (
            f"iteration {progress.iteration} was skipped: the loss is {result.losses.loss:g}, the gradient norm "
            f"{result.grad_norm:g}"
        )
        if math.isfinite(result.losses.loss) and math.isfinite(result.grad_norm):
            said += ", and a memory was given a value that is not finite"
        if progress.recoveries > self._faults.on_nan_limit:
            raise NotFiniteError(f"{said}; that was more than --on-nan-limit {self._faults.on_nan_limit} allows")
        return f"{said} ({progress.recoveries} of --on-nan-limit {self._faults.on_nan_limit})"

    def watch_loss(self, progress: TrainingProgress, loss: float) -> None:
        """Compare a finite loss with the median of the last ones; raises LossSpikeError where it stays too high."""
        factor, steps = self._faults.loss_spike_factor, self._faults.loss_spike_steps
        if factor is None:
            return
        recent = progress.recent_losses
        if len(recent) >= self._faults.loss_spike_window and loss > factor * median(recent):
            progress.spike_steps += 1
            if progress.spike_steps >= steps:
                raise LossSpikeError(
                    f"iteration {progress.iteration}: the loss {loss:.4f} is more than --loss-spike-factor {factor:g} "
                    f"times the median {median(recent):.4f} of the {len(recent)} iterations before, for {steps} "
                    f"iteration{'s' * (steps != 1)}"
                )
            return  # a spike does not move the median
        progress.spike_steps = 0
        recent.append(loss)
        del recent[: -self._faults.loss_spike_window]

    def go_back(self, error: TrainingDivergedError, failed: TrainingProgress) -> tuple[TrainingProgress, JsonRecord]:
        """Load an earlier checkpoint and leave out the data behind it; returns its progress and what to record.

        Raises `error` where the options say so, and where nothing more can be done.
        """
        spike = isinstance(error, LossSpikeError)
        if not spike and not (isinstance(error, NotFiniteError) and self._faults.on_nan == "rewind"):
            raise error
        if failed.recoveries >= self._faults.on_nan_limit:
            raise type(error)(f"{error}; --on-nan-limit {self._faults.on_nan_limit} is used up") from error
        before = failed.iteration - (failed.spike_steps - 1 if spike else 0)
        progress = self._checkpoints.go_back(before)
        if progress is None:
            raise type(error)(f"{error}; no checkpoint in --save is from before iteration {before}") from error
        first, last = progress.data_position, failed.data_position - 1
        progress.skipped_samples += last + 1 - first
        progress.recoveries = failed.recoveries + 1
        progress.dataset_windows = failed.dataset_windows
        self._checkpoints.leave_data_out(progress)
        logger.info("%s", error.what)
        logger.info(
            "the run went back to iteration %d and leaves out samples %d to %d of the data order (%d of "
            "--on-nan-limit %d)",
            progress.iteration,
            first,
            last,
            progress.recoveries,
            self._faults.on_nan_limit,
        )
        record = {
            "iteration": progress.iteration,
            "failed_iteration": failed.iteration,
            "reason": error.what,
            "left_out": [first, last],
            "recoveries": progress.recoveries,
        }
        return progress, record
