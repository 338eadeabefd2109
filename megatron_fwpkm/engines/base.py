"""What the loop, the checkpoints and the start of a run know of an engine. Nothing here names a library.

An engine turns a configuration into a model that takes steps, is measured, saved and loaded. Process groups, ranks and
the layout of the model over processes are its own affair. Batches are mappings with `tokens`, `labels`, `loss_mask`,
`position_ids`, `document_starts`, each [b, s].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..checkpoint.record import Layout
from ..config import PretrainConfig
from ..distributed.startup import World
from .losses import Losses
from .memory_report import MemoryReport

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step tells; the same on every rank."""

    losses: Losses
    grad_norm: float
    lr: float
    """Learning rate that this step used."""
    skipped: bool = False
    """Whether the step was undone, because its numbers were not finite (--on-nan skip)."""


class BackgroundSave(Protocol):
    """A checkpoint that is written while training goes on. Every method is called by every rank."""

    def finish(self, *, wait: bool) -> bool:
        """Whether the files of every rank are whole; with `wait`, not before they are.

        Raises CheckpointException (torch.distributed.checkpoint) on every rank where a writer failed on one.
        """

    def abort(self) -> None:
        """End this rank's writers."""


class Engine(Protocol):
    """A model with its optimizer and schedule, spread over processes."""

    layout: Layout
    """Over how many processes the model is spread, and how."""
    data_parallel_rank: int
    """Which of the `layout.data_parallel` replicas this rank belongs to; it decides which samples the rank reads."""
    pipeline_stage: int
    """The part of the model that this rank computes; ranks of the same stage have the same work."""
    num_parameters: int
    """Parameters that this rank trains."""

    def train_step(self, batches: Iterator[Batch], samples: int | None = None) -> StepResult:
        """One optimizer step over the next micro-batches, `samples` sequences of all replicas (a global batch)."""

    def evaluate(
        self, batches: Iterable[Batch], iterations: int, stop: Callable[[], bool] | None = None
    ) -> Losses | None:
        """Losses over `iterations` global batches; changes nothing, fast weights included.

        `stop` is asked before every batch, and answers the same on every rank; None where it says yes.
        """

    def forward_seconds(self) -> float:
        """Seconds of forward passes in training since the last call, with --log-straggler; waits for no device."""

    def memory_report(self) -> MemoryReport:
        """Statistics of every memory layer over all ranks."""

    def save(self, folder: Path) -> None:
        """Write slow weights, optimizer, schedule and fast weights; called by every rank."""

    def save_in_background(self, folder: Path) -> BackgroundSave:
        """Begin to write the same, as it is now, while training goes on; called by every rank."""

    def load(self, folder: Path, *, weights_only: bool) -> list[str]:
        """Read them back (`weights_only`: no optimizer and schedule); returns notices for the log."""

    def begin_at(self, iteration: int) -> None:
        """Move the schedule of a run that has weights alone, and so an optimizer that begins anew."""

    def random_state(self) -> dict[str, Any]:
        """States of the random generators that are the engine's own, as tensors and plain values."""

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Put back what `random_state` gave."""

    def peak_device_memory(self) -> int | None:
        """Peak bytes on the accelerator, None on the CPU."""


EngineBuilder = Callable[[PretrainConfig, World, int], AbstractContextManager[Engine]]
"""(configuration, this process among all, number of tokens in the vocabulary) -> the engine, for as long as it runs."""
