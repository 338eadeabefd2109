"""How long the forward passes of a rank take on its device, measured without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MOST_EVENTS = 512
"""Pairs of events that may wait to be read."""


class ForwardTime:
    """A clock around the forward passes of training.

    On a GPU two events stand in its queue and are read when it has passed them; on the CPU it is the wall time.
    """

    def __init__(self, device: torch.device) -> None:
        """`device` is where the model computes."""
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count what is computed inside."""
        if not self._on_gpu:
            begin = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin
            return
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        yield
        last.record()
        self._events.append((first, last))
        if len(self._events) > _MOST_EVENTS:
            self._read()

    def take(self) -> float:
        """Seconds counted since the last call; what the device has not finished counts at the next."""
        self._read()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _read(self) -> None:
        done = [pair for pair in self._events if pair[1].query()]
        self._seconds += sum(first.elapsed_time(last) for first, last in done) / 1000
        self._events = self._events[len(done) :]  # the device passes them in their order
