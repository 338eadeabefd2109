"""Guards that stop a run if the loss or a gradient is not finite, or if a memory diverges.

They see numbers only (no tensors), the same on every rank, so that all ranks stop together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from ..config import PretrainConfig
from ..config.memories import MemoryKind, memory_kinds

BASELINE_OBSERVATIONS = 10
"""Observations (one per log interval or checkpoint) whose median memorization loss is the yardstick of a layer."""


class TrainingDivergedError(ValueError):
    """Training diverged, and more steps cannot repair it; the message names step, place and what to try."""

    def __init__(self, what: str, to_try: str = "") -> None:
        """`what` has happened; `to_try` follows in the message, where the run ends."""
        super().__init__(what + to_try)
        self.what = what


class NotFiniteError(TrainingDivergedError):
    """A loss, a gradient norm or a memory is NaN or infinite (--on-nan)."""


class LossSpikeError(TrainingDivergedError):
    """The loss stayed too far above its median (--loss-spike-factor)."""


def check_finite(iteration: int, numbers: Mapping[str, float], config: PretrainConfig, kept: str | None) -> None:
    """Raise NotFiniteError when one of the step's numbers (by name) is NaN or infinite.

    `kept` is the path of the newest checkpoint, if any.
    """
    clipped, bf16 = 0 < config.optimizer.clip_grad <= 1, config.training.bf16
    ways = ["a smaller --lr", "a longer --lr-warmup-iters"]
    ways += [] if clipped else ["--clip-grad 1.0"]
    ways += ["--no-bf16"] if bf16 else []
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"iteration {iteration}: the {name} is {value}", f".{_way_out(ways, kept)}")


class MemoryGuard:
    """Compares every layer's memorization loss with the median of its first observations."""

    def __init__(self, config: PretrainConfig) -> None:
        """A loss above --divergence-factor times the early median stops the run."""
        self.factor = config.training.divergence_factor
        self._ways = [*(way for memory in memory_kinds(config) for way in _ways(memory)), "a smaller --lr"]
        self._early: dict[int, list[float]] = {}

    def check(
        self,
        iteration: int,
        memorization_loss: Mapping[int, float],
        finite_tables: Mapping[int, bool],
        kept: str | None,
    ) -> None:
        """Look at one iteration; both mappings go from layer number to the worst value over replicas.

        `kept` is the path of the newest checkpoint, if any. Raises TrainingDivergedError for a table with NaN or
        infinity (NotFiniteError) and for a memorization loss out of bounds.
        """
        for layer in sorted(memorization_loss):
            loss = memorization_loss[layer]
            if not finite_tables.get(layer, True) or not math.isfinite(loss):
                raise NotFiniteError(
                    f"iteration {iteration}: the memory of layer {layer} is not finite (memorization loss {loss})",
                    f".{_way_out(self._ways, kept)}",
                )
            early = self._early.setdefault(layer, [])
            if len(early) < BASELINE_OBSERVATIONS:
                early.append(loss)
                continue
            limit = self.factor * median(early)
            if loss > limit:
                raise TrainingDivergedError(
                    f"iteration {iteration}: the memory of layer {layer} diverges: memorization loss {loss:.4g} is "
                    f"more than --divergence-factor {self.factor:g} times its early median {median(early):.4g}."
                    f"{_way_out(self._ways, kept)}"
                )

    def state_dict(self) -> dict[str, list[float]]:
        """The early losses by layer, JSON-able, so that a resumed run keeps its yardstick."""
        return {str(layer): list(losses) for layer, losses in self._early.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Take over the early losses of a saved run."""
        self._early = {int(layer): list(losses) for layer, losses in state.items()}


def _ways(memory: MemoryKind) -> Iterator[str]:
    """What may keep a kind of memory from diverging."""
    options, prefix = memory.options, memory.fast.prefix
    yield f"a smaller {prefix}inner-lr"
    if not options.normalize_targets:
        yield f"{prefix}normalize-targets"
    if options.reset == "never":
        yield f"{prefix}reset step"


def _way_out(ways: Sequence[str], kept: str | None) -> str:
    """The newest checkpoint and what to try; sentences with a space before them."""
    tries = " or ".join(ways) if len(ways) == 2 else f"{', '.join(ways[:-1])}, or {ways[-1]}"
    return (f" The checkpoint {kept} is intact." if kept else "") + f" Try {tries}"
