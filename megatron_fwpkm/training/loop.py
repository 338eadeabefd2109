"""The training loop: steps, logs, evaluations, checkpoints and the ways to end. It knows an Engine and no Megatron."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from statistics import fmean
from typing import Protocol

from ..config import PretrainConfig
from ..config.batch_schedule import step_samples
from ..config.pswa import count_windowed
from ..distributed.ranks import any_rank
from ..distributed.startup import World
from ..engines.base import Batch, Engine, StepResult
from ..engines.memory_report import MemoryReport
from .checkpointing import TrainingProgress, folder_bytes
from .garbage import GarbageCollection
from .guards import MemoryGuard, TrainingDivergedError, check_finite
from .metrics import JsonRecord, MetricsLog, median_or_zero, peak_memory_gib, progress_line, summary_lines
from .recovery import Recovery
from .signals import StopSignals
from .stragglers import StragglerWatch

SKIPPED = "evaluated without training"
"""Why a run with --skip-train ends; nothing is left to do then."""

logger = logging.getLogger("megatron_fwpkm")


class Checkpoints(Protocol):
    """What the loop needs of the run's checkpoints."""

    begun_iteration: int | None
    """Iteration of the newest checkpoint that is published or being written."""
    saved_iteration: int | None
    """Iteration of the newest checkpoint that is published."""

    @property
    def enabled(self) -> bool:
        """Whether anything is saved."""

    def save(self, progress: TrainingProgress) -> None:
        """Write and publish a checkpoint, or begin to."""

    def finish(self, *, wait: bool) -> None:
        """Publish what is being written if it is complete; with `wait`, wait until it is."""

    def newest(self) -> str | None:
        """Path of the newest checkpoint."""


class TrainingLoop:
    """Trains a model from `progress` to --train-iters, or until an earlier request to stop."""

    def __init__(
        self,
        config: PretrainConfig,
        world: World,
        engine: Engine,
        checkpoints: Checkpoints,
        metrics: MetricsLog,
        progress: TrainingProgress,
        samples_per_step: int,
        recovery: Recovery,
        around_step: Callable[[int], AbstractContextManager[object]] = nullcontext,
        figures: Callable[[int, float, MemoryReport], JsonRecord] = lambda tokens, seconds, report: {},
    ) -> None:
        """`samples_per_step` is the full global batch; `metrics` writes on rank 0 and has no sinks elsewhere.

        `around_step` is entered for every step, with the number of iterations before it. `figures` adds to the record
        of an interval, by its tokens, the seconds of its steps and the memories after it.
        """
        self._recovery = recovery
        self._around_step, self._figures = around_step, figures
        self._config = config
        self._world = world
        self._engine = engine
        self._checkpoints = checkpoints
        self._metrics = metrics
        self.progress = progress
        self._samples_per_step = samples_per_step
        self._interval_tokens = 0
        """Tokens since the last progress line."""
        self._guard = MemoryGuard(config)
        self._guard.load_state_dict(progress.guard)
        self._started = time.monotonic()
        self._first_iteration = progress.iteration
        self._first_tokens = progress.consumed_tokens
        self._step_seconds: list[float] = []
        self._speeds: list[float] = []
        self._last: StepResult | None = None
        self._validation_loss: float | None = None
        self._test_loss: float | None = None
        self._stop = StopSignals()
        self._save_began: tuple[int, float] | None = None
        """Iteration and time of a save that is under way."""
        self._garbage = GarbageCollection(config.training)
        self._stragglers = StragglerWatch(config, world, engine)

    def run(
        self,
        validation: Iterable[Batch] | None,
        test: Iterable[Batch] | None,
        places: dict[str, str | None],
    ) -> None:
        """Train, evaluate, log and save until the run ends; then write the summary. --skip-train only evaluates.

        `test` is measured once, after the last iteration. `places` names files and folders for the summary. Raises
        TrainingDivergedError when the run has gone wrong; the last published checkpoint is untouched then.
        """
        batches = self._data_ahead()
        with self._stop, self._garbage:
            if self.progress.evaluation_cut_off or self._config.training.skip_train:
                self._evaluate_validation(validation)
            reason = self._why_stop()
            while reason is None:
                try:
                    with self._around_step(self.progress.iteration):
                        self._step(batches)
                    self._finish_saving(wait=False)
                    self._garbage.after_iteration(self.progress.iteration)
                    report = self._log_if_due()
                    self._evaluate_if_due(validation)
                    reason = self._why_stop()
                    self._save_if_due(report, ending=reason is not None)
                except TrainingDivergedError as error:
                    batches, reason = self._go_back(error), None
            self._finish_saving(wait=True)
            if test is not None and reason in ("finished", SKIPPED):
                self._test_loss = self._evaluate("test", test)
                if self._test_loss is None:
                    reason = self._wish_to_stop()
        self._finish(reason, places)

    def _go_back(self, error: TrainingDivergedError) -> Iterator[Batch]:
        """Continue from an earlier checkpoint, where options say so; else raise the error. Returns the data ahead."""
        self._finish_saving(wait=True)
        self._world.mark(f"going back from iteration {self.progress.iteration}")
        self.progress, record = self._recovery.go_back(error, self.progress)
        self._guard.load_state_dict(self.progress.guard)
        self._step_seconds.clear()
        self._interval_tokens = 0
        self._metrics.go_back(self.progress.iteration)
        self._metrics.write("rewind", record)
        return self._data_ahead()

    def _data_ahead(self) -> Iterator[Batch]:
        """The training data from where the run stands."""
        return self._stragglers.reading(self._recovery.training_data(self.progress))

    def _step(self, batches: Iterator[Batch]) -> None:
        begin = time.monotonic()
        self._world.mark(f"iteration {self.progress.iteration + 1}")
        samples = step_samples(self._config.training, self._samples_per_step, self.progress.consumed_samples)
        result = self._engine.train_step(batches, samples)
        self._step_seconds.append(time.monotonic() - begin)
        self._stragglers.after_step()
        progress = self.progress
        progress.iteration += 1
        tokens = samples * self._config.model.seq_length
        progress.consumed_samples += samples
        progress.consumed_tokens += tokens
        self._interval_tokens += tokens
        if result.skipped:
            said = self._recovery.count_skip(progress, result)
            logger.info("%s", said)
            self._metrics.write("skip", {"iteration": progress.iteration, "reason": said})
            return
        self._last = result
        self._check_step(result)
        self._recovery.watch_loss(progress, result.losses.loss)
        progress.window.append((result.losses.loss, result.losses.lm_loss))
        if progress.best_loss is None or result.losses.loss < progress.best_loss:
            progress.best_loss = result.losses.loss

    def _check_step(self, result: StepResult) -> None:
        """Stop on a loss or gradient that is not finite; where a memory is the cause, its layer is named."""
        numbers = {**asdict(result.losses), "gradient norm": result.grad_norm}
        if not all(math.isfinite(number) for number in numbers.values()):
            self._look_at_memories()
        check_finite(self.progress.iteration, numbers, self._config, self._checkpoints.newest())

    def _log_if_due(self) -> MemoryReport | None:
        """At every log interval: look at the memories, write one record and one line."""
        progress, config = self.progress, self._config
        if progress.iteration % config.logging.log_interval and progress.iteration != config.training.train_iters:
            return None
        if self._last is None:  # every step so far was skipped
            return None
        report = self._look_at_memories()
        if not progress.window:
            return report
        seconds = sum(self._step_seconds)
        speed = self._interval_tokens / max(seconds, 1e-9)
        self._speeds.append(speed)
        record: JsonRecord = {
            "iteration": progress.iteration,
            "consumed_samples": progress.consumed_samples,
            "consumed_tokens": progress.consumed_tokens,
            "loss": fmean(loss for loss, _ in progress.window),
            "lm_loss": fmean(lm_loss for _, lm_loss in progress.window),
            "lr": self._last.lr,
            "grad_norm": self._last.grad_norm,
            "tokens_per_second": speed,
            **self._figures(self._interval_tokens, seconds, report),
            "seconds": time.monotonic() - self._started,
            "memory_gib": peak_memory_gib(self._engine.peak_device_memory()),
            "memory": report.as_record(),
        }
        if config.fwpkm.pswa_probability:
            taken = range(progress.iteration - len(progress.window), progress.iteration)
            record["pswa_share"] = count_windowed(config, taken) / len(taken)
        self._metrics.write("train", record)
        if (slow := self._stragglers.report(progress.iteration)) is not None:
            self._metrics.write("stragglers", slow)
        remaining = config.training.train_iters - progress.iteration
        logger.info("%s", progress_line(record, config.training.train_iters, remaining * self._seconds_per_iteration()))
        self._step_seconds.clear()
        self._interval_tokens = 0
        progress.window.clear()
        return report

    def _seconds_per_iteration(self) -> float:
        """Wall time per iteration of this process so far, evaluations and checkpoints included."""
        return (time.monotonic() - self._started) / max(1, self.progress.iteration - self._first_iteration)

    def _look_at_memories(self) -> MemoryReport:
        """Collect the statistics and let the guard see them."""
        report = self._engine.memory_report()
        self._guard.check(
            self.progress.iteration, report.worst_memorization_loss, report.finite_tables, self._checkpoints.newest()
        )
        self.progress.guard = self._guard.state_dict()
        return report

    def _evaluate_if_due(self, validation: Iterable[Batch] | None) -> None:
        training = self._config.training
        due = self.progress.iteration % training.eval_interval == 0 or self.progress.iteration == training.train_iters
        if due:
            self._evaluate_validation(validation)

    def _evaluate_validation(self, validation: Iterable[Batch] | None) -> None:
        """Evaluate the validation data; if that is interrupted, remember it, so that a resumed run does it first."""
        if validation is not None:
            self._validation_loss = self._evaluate("validation", validation)
            self.progress.evaluation_cut_off = self._validation_loss is None
            if self._validation_loss is not None:
                self.progress.validation = {"iteration": self.progress.iteration, "lm_loss": self._validation_loss}

    def _evaluate(self, split: str, batches: Iterable[Batch]) -> float | None:
        """Evaluate a split, restore the memories, and write and log the result; returns the LM loss.

        A request to stop interrupts it between two batches: then nothing is written and None is returned.
        """
        iteration, begin = self.progress.iteration, time.monotonic()

        def stop() -> bool:
            """Whether to go no further; asked before every batch."""
            self._world.mark(f"evaluating {split} data at iteration {iteration}")
            return self._wish_to_stop() is not None

        with self._garbage.around_evaluation():
            losses = self._engine.evaluate(batches, self._config.training.eval_iters, stop=stop)
        seconds = time.monotonic() - begin
        if losses is None:
            logger.info("the %s evaluation at iteration %d was interrupted after %.1f s", split, iteration, seconds)
            return None
        kind = "evaluation" if split == "validation" else "test"
        self._metrics.write(kind, {"iteration": iteration, **asdict(losses), "seconds": seconds})
        logger.info(
            "%s at iteration %d: loss %.4f | lm loss %.4f | %.1f s",
            split,
            iteration,
            losses.loss,
            losses.lm_loss,
            seconds,
        )
        return losses.lm_loss

    def _why_stop(self) -> str | None:
        """The reason to end after this iteration, the same on every rank; None to go on."""
        training, iteration = self._config.training, self.progress.iteration
        if training.skip_train:
            return self._wish_to_stop() or SKIPPED
        if iteration >= training.train_iters and not self.progress.evaluation_cut_off:
            return "finished"
        wish = self._wish_to_stop()
        if wish is None and training.exit_interval and iteration > self._first_iteration:
            if iteration % training.exit_interval == 0:
                return f"stopped at --exit-interval {training.exit_interval}"
        return wish

    def _wish_to_stop(self) -> str | None:
        """Why a signal or --exit-duration-in-mins asks this run to stop now, the same on every rank; else None."""
        training = self._config.training
        minutes = (time.monotonic() - self._started) / 60
        late = training.exit_duration_in_mins is not None and minutes >= training.exit_duration_in_mins
        signalled, late = any_rank([self._stop.received is not None, late], self._world.device)
        if signalled:
            name = self._stop.received.name if self._stop.received is not None else "a signal on another rank"
            return f"stopped by {name}"
        if late:
            return f"stopped after --exit-duration-in-mins {training.exit_duration_in_mins:g}"
        return None

    def _save_if_due(self, report: MemoryReport | None, *, ending: bool) -> None:
        """Save at the interval and at the end, but only memories that the guard has checked."""
        progress, interval = self.progress, self._config.checkpoint.save_interval
        due = ending or (interval is not None and progress.iteration % interval == 0)
        if not self._checkpoints.enabled or not due or self._checkpoints.begun_iteration == progress.iteration:
            return
        if report is None and self._last is not None:
            self._look_at_memories()
        self._finish_saving(wait=True)
        begin = time.monotonic()
        self._world.mark(f"saving iteration {progress.iteration}")
        self._checkpoints.save(progress)
        if self._config.checkpoint.async_save:
            self._save_began = (progress.iteration, begin)
            seconds = time.monotonic() - begin
            logger.info(
                "writing the checkpoint of iteration %d in the background (training waited %.1f s)",
                progress.iteration,
                seconds,
            )
            if ending:
                self._finish_saving(wait=True)
        else:
            seconds = time.monotonic() - begin
            logger.info("saved %s in %.1f s", self._checkpoints.newest(), seconds)
            self._record_save(progress.iteration, seconds)

    def _finish_saving(self, *, wait: bool) -> None:
        """Publish what is being written if it is complete, and log that."""
        self._checkpoints.finish(wait=wait)
        if self._save_began is not None and self._checkpoints.saved_iteration == self._save_began[0]:
            seconds = time.monotonic() - self._save_began[1]
            logger.info(
                "the checkpoint of iteration %d is complete: %s, saved in %.1f s",
                self._save_began[0],
                self._checkpoints.newest(),
                seconds,
            )
            self._record_save(self._save_began[0], seconds)
            self._save_began = None

    def _record_save(self, iteration: int, seconds: float) -> None:
        """Write the record of a checkpoint that is complete, `seconds` after it was begun."""
        size = folder_bytes(self._checkpoints.newest()) if self._world.is_main else 0
        self._metrics.write("save", {"iteration": iteration, "seconds": seconds, "bytes": size})

    def _finish(self, reason: str | None, places: dict[str, str | None]) -> None:
        """Write the `end` record and log the summary."""
        progress = self.progress
        summary: JsonRecord = {
            "iteration": progress.iteration,
            "reason": reason,
            "seconds": time.monotonic() - self._started,
            "tokens": progress.consumed_tokens - self._first_tokens,
            "tokens_per_second": median_or_zero(self._speeds),
            "peak_memory_gib": peak_memory_gib(self._engine.peak_device_memory()),
            "last_loss": self._last.losses.loss if self._last is not None else None,
            "best_loss": progress.best_loss,
            "validation_loss": self._validation_loss,
            "test_loss": self._test_loss,
            "places": {"checkpoint": self._checkpoints.newest(), **places},
        }
        self._metrics.write("end", summary)
        for line in summary_lines(summary):
            logger.info("%s", line)
        if not self._checkpoints.enabled:
            logger.info("nothing was saved: --save was not given")
