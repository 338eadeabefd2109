"""Full causal attention."""

from __future__ import annotations

from collections.abc import Sequence

from ..layer_kind import LayerKind, Role
from ..pretrain import PretrainConfig
from .attention_counts import (
    attention_activation_bytes,
    attention_divided,
    attention_flops,
    attention_fp8_widths,
    attention_parameters,
)


def _reach(config: PretrainConfig, layer_number: int) -> str:
    window, probability = config.model.window_size, config.fwpkm.pswa_probability
    narrowed = f"; {window[0]:,} in training (p = {probability:g})" if probability and window else ""
    return f"all tokens before{narrowed}"


def _summary(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    count, layers = len(layer_numbers), config.model.num_layers
    where = "" if count == layers else f" in {count} of {layers} layers"
    return f"Attention sees the whole text{where}."


FULL_ATTENTION = LayerKind(
    name="fa",
    role=Role.MIXER,
    label="full attention",
    parameters=attention_parameters,
    activation_bytes=attention_activation_bytes,
    flops=attention_flops,
    reach=_reach,
    summary=_summary,
    divided=attention_divided,
    fp8_widths=attention_fp8_widths,
    core_attention=True,
    narrowed_in_training=True,
    context_parallel=True,
    separates_documents=True,
)
"""Its row."""
