"""Python's garbage collection at chosen moments instead of anywhere: --manual-gc."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from ..config import TrainingConfig


class GarbageCollection:
    """Context manager of a training loop; does nothing without --manual-gc.

    Collections cost the more the more objects there are, and happen on every rank at another moment, where all ranks
    then wait for it. Inside the context the automatic one is off.
    """

    def __init__(self, training: TrainingConfig) -> None:
        """Nothing changes before `__enter__`."""
        self._training = training
        self._was_enabled = False

    def __enter__(self) -> GarbageCollection:
        """Switch the automatic collection off and collect once."""
        if self._training.manual_gc:
            self._was_enabled = gc.isenabled()
            gc.disable()
            gc.collect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the automatic collection as it was."""
        if self._was_enabled:
            gc.enable()

    def after_iteration(self, iteration: int) -> None:
        """Collect where --manual-gc-interval is due."""
        interval = self._training.manual_gc_interval
        if self._training.manual_gc and interval and iteration % interval == 0:
            gc.collect()

    @contextmanager
    def around_evaluation(self) -> Iterator[None]:
        """Collect before, and afterwards what the evaluation has left, unless --no-manual-gc-eval."""
        wanted = self._training.manual_gc and self._training.manual_gc_eval
        if wanted:
            gc.collect()
        yield
        if wanted:
            gc.collect(0)
