"""The fields of fast-weight MLPs in the configuration, and how they must fit each other.

Ships inside exports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ops.fast_weight_mlp.mlp_options import CHOICES, STEP_SIZES, WHOLE_NUMBERS

if TYPE_CHECKING:
    from .configuration_fwpkm import FwPKMHFConfig

FAST_MLP_LEAST = {
    **{f"fwmlp_{name}": 1 for name in ("hidden_size", "key_dim", "value_dim")},
    **{f"fwmlp_{name}": least for name, least in WHOLE_NUMBERS.items()},
}
"""Fields that are whole numbers, and the least that each may be."""
FAST_MLP_MOST = {f"fwmlp_{name}": most for name, most in STEP_SIZES.items()}
"""Fields that are numbers from 0, and the largest each may be."""
FAST_MLP_SWITCHES = ("fwmlp_gate", "fwmlp_gate_writes", "fwmlp_normalize_targets")
"""Fields that are True or False."""
FAST_MLP_WORDS = {f"fwmlp_{name}": words for name, words in CHOICES.items()}
"""Fields that are words, and the words each may be."""


def check_fast_mlps(config: FwPKMHFConfig) -> None:
    """Check the fast-weight MLPs of a complete configuration.

    Raises:
        ValueError: fields do not fit each other.
    """
    layers = list(config.fwmlp_layers)
    for layer in layers:
        if layer >= config.num_hidden_layers:
            raise ValueError(
                f"fwmlp_layers contains {layer}, but the layers are numbered from 0 to {config.num_hidden_layers - 1}"
            )
        if layers.count(layer) > 1 or layer in config.fwpkm_layers:
            raise ValueError(
                f"fwmlp_layers={layers} and fwpkm_layers={list(config.fwpkm_layers)} contain {layer} more than once; a "
                "layer has at most one memory"
            )
    if not layers:
        return
    if config.fwmlp_lookahead >= config.fwmlp_chunk_size:
        raise ValueError(
            f"fwmlp_lookahead={config.fwmlp_lookahead} must be below fwmlp_chunk_size={config.fwmlp_chunk_size}, or no "
            "token would be written"
        )
    if config.fwmlp_normalize_targets and config.fwmlp_value_dim < 2:
        raise ValueError(
            "fwmlp_value_dim=1 cannot be z-scored: it must be at least 2, or fwmlp_normalize_targets must be False"
        )


def fast_mlp_numbers(config: FwPKMHFConfig) -> dict[tuple[str, ...], int]:
    """How many numbers the parts of all fast-weight MLPs have, by the fields that say so."""
    count, width, hidden = len(config.fwmlp_layers), config.fwmlp_hidden_size, config.hidden_size
    return {
        ("fwmlp_hidden_size", "fwmlp_key_dim"): 2 * count * width * config.fwmlp_key_dim,
        ("fwmlp_hidden_size", "fwmlp_value_dim"): count * width * config.fwmlp_value_dim,
        ("hidden_size", "fwmlp_key_dim"): count * hidden * config.fwmlp_key_dim,
        ("hidden_size", "fwmlp_value_dim"): 2 * count * hidden * config.fwmlp_value_dim,
    }
