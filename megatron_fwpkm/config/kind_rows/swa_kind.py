"""Sliding attention: causal attention within a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..layer_pattern import layer_windows
from ..pretrain import PretrainConfig
from .fa_kind import FULL_ATTENTION


def _reach(config: PretrainConfig, layer_number: int) -> str:
    window = layer_windows(config.model)[layer_number - 1]
    return f"itself and {window:,} token{'s' * (window != 1)} before"


def _summary(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    windows, count, layers = layer_windows(config.model), len(layer_numbers), config.model.num_layers
    seen = sorted({1 + (windows[number - 1] or 0) for number in layer_numbers})  # a token sees itself, too
    where = "" if count == layers else f" in {count} of {layers} layers"
    return f"Attention sees windows of {', '.join(map(str, seen))} tokens{where}."


SLIDING_ATTENTION = replace(
    FULL_ATTENTION,
    name="swa",
    label="sliding attention",
    reach=_reach,
    summary=_summary,
    within_window=True,
    narrowed_in_training=False,
)
"""Its row: full attention's, but for what it sees."""
