"""Windows of token mixers that see everything, for single training steps (--fwpkm-pswa-probability)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class NarrowedInTraining:
    """Of a token mixer that sees all tokens before a token: in training mode it sees `training_window` of them.

    Attributes:
        training_window: tokens to the left that are visible in training mode, or None for all.
    """

    training_window: int | None = None


def set_training_windows(modules: Iterable[nn.Module], window: int | None) -> None:
    """Let every `NarrowedInTraining` inside some modules see this window in training mode, from now on."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, NarrowedInTraining):
                part.training_window = window
