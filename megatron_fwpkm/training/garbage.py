"""Python's garbage collection at chosen iterations instead of at any time: --manual-gc."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from ..config import TrainingConfig


class GarbageCollection:
    """Context manager of a training loop; does nothing without --manual-gc.

    Automatic collections happen at different times on different ranks, and all ranks wait for each of them. Inside the
    context automatic collection is off.
    """

    def __init__(self, training: TrainingConfig) -> None:
        """Nothing changes before `__enter__`."""
        self._training = training
        self._was_enabled = False

    def __enter__(self) -> GarbageCollection:
        """Disable automatic collection and collect once."""
        if self._training.manual_gc:
            self._was_enabled = gc.isenabled()
            gc.disable()
            gc.collect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore automatic collection."""
        if self._was_enabled:
            gc.enable()

    def after_iteration(self, iteration: int) -> None:
        """Collect if --manual-gc-interval is due."""
        interval = self._training.manual_gc_interval
        if self._training.manual_gc and interval and iteration % interval == 0:
            gc.collect()

    @contextmanager
    def around_evaluation(self) -> Iterator[None]:
        """Collect before and after an evaluation, unless --no-manual-gc-eval is given."""
        wanted = self._training.manual_gc and self._training.manual_gc_eval
        if wanted:
            gc.collect()
        yield
        if wanted:
            gc.collect(0)
