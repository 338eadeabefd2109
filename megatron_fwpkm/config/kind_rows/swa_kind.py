"""Sliding attention: causal attention within a window."""

from __future__ import annotations

from collections.abc import Sequence

from ..layer_kind import LayerKind, Role
from ..layer_pattern import layer_windows
from ..pretrain import PretrainConfig
from .attention_counts import (
    attention_activation_bytes,
    attention_divided,
    attention_flops,
    attention_fp8_widths,
    attention_parameters,
)


def _reach(config: PretrainConfig, layer_number: int) -> str:
    window = layer_windows(config.model)[layer_number - 1]
    return f"itself and {window:,} token{'s' * (window != 1)} before"


def _summary(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    windows, count, layers = layer_windows(config.model), len(layer_numbers), config.model.num_layers
    seen = sorted({1 + (windows[number - 1] or 0) for number in layer_numbers})  # a token sees itself, too
    where = "" if count == layers else f" in {count} of {layers} layers"
    return f"Attention sees windows of {', '.join(map(str, seen))} tokens{where}."


SLIDING_ATTENTION = LayerKind(
    name="swa",
    role=Role.MIXER,
    label="sliding attention",
    parameters=attention_parameters,
    activation_bytes=attention_activation_bytes,
    flops=attention_flops,
    reach=_reach,
    summary=_summary,
    divided=attention_divided,
    fp8_widths=attention_fp8_widths,
    within_window=True,
    context_parallel=True,
    separates_documents=True,
)
"""Its row."""
