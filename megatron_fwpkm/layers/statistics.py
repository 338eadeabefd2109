"""What one memory did in its last forward pass, for logs and guards."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megatron_fwpkm.ops import FastWeightOutput


@dataclass(frozen=True)
class MemoryStatistics:
    """Figures of one memory layer.

    Attributes:
        gate_mean: mean gate of the last forward, 1 without gates.
        coverage: share of the slots written since the last reset (with reset=document: in the last forward).
        collisions: 1 - distinct slots / reads, within the chunks of the last forward.
        memorization_loss: mean weighted squared error that the last forward's writes reduced; 0 without writes.
        addressing_loss: mean of the last forward's key updates; 0 without any.
    """

    gate_mean: float
    coverage: float
    collisions: float
    memorization_loss: float
    addressing_loss: float


class ForwardRecord:
    """The detached outputs of one forward; figures are computed only when somebody asks, so that a step costs nothing.

    Args:
        gates: of all tokens, or None.
        outputs: of the calls of the memory that made up the forward.
        chunk_size: tokens per chunk.
    """

    def __init__(self, gates: Tensor | None, outputs: list[FastWeightOutput], chunk_size: int) -> None:
        self._gates = None if gates is None else gates.detach()
        self._slots = [output.slot_indices for output in outputs]
        self._memorization_losses = [output.memorization_loss for output in outputs]
        self._addressing_losses = [output.addressing_loss for output in outputs]
        self._chunk_size = chunk_size

    def summarize(self, coverage: float) -> MemoryStatistics:
        """Compute the figures.

        Args:
            coverage: taken from the tables, which outlive a forward.
        """
        return MemoryStatistics(
            gate_mean=1.0 if self._gates is None else self._gates.mean().item(),
            coverage=coverage,
            collisions=self._collisions(),
            memorization_loss=_mean(self._memorization_losses),
            addressing_loss=_mean(self._addressing_losses),
        )

    def _collisions(self) -> float:
        chunks = [chunk for slots in self._slots for chunk in slots.split(self._chunk_size, dim=1)]
        reads = sum(chunk.numel() for chunk in chunks)
        return 1.0 - sum(chunk.unique().numel() for chunk in chunks) / max(1, reads)


def _mean(losses: list[Tensor]) -> float:
    count = sum(loss.numel() for loss in losses)
    return sum(loss.sum().item() for loss in losses) / max(1, count)
