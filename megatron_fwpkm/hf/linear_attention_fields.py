"""The fields of linear attention in the configuration, with Qwen3-Next's names, and how they must fit each other.

Ships inside exports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_fwpkm import FwPKMHFConfig

GATED_DELTA_NET = "gdn"
"""The token mixer that is linear attention."""
LINEAR_SIZES = {
    "linear_conv_kernel_dim": (2, 1024),
    "linear_key_head_dim": (1, 2**16),
    "linear_value_head_dim": (1, 2**16),
    "linear_num_key_heads": (1, 2**16),
    "linear_num_value_heads": (1, 2**16),
}
"""The integers that each field takes, from and to."""


def check_linear_attention(config: FwPKMHFConfig) -> None:
    """Check the heads of a complete configuration that has linear attention.

    Raises:
        ValueError: fields do not fit each other.
    """
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    if GATED_DELTA_NET in config.token_mixers and values % keys:
        raise ValueError(f"linear_num_value_heads={values} is not divisible by linear_num_key_heads={keys}")


def linear_attention_parts(config: FwPKMHFConfig) -> dict[tuple[str, ...], int]:
    """The numbers in the weights of its layers and in a state, by the fields that they follow from."""
    layers = list(config.token_mixers).count(GATED_DELTA_NET)
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    return {
        ("hidden_size", "linear_num_key_heads", "linear_key_head_dim"): 2 * layers * config.hidden_size * keys,
        ("hidden_size", "linear_num_value_heads", "linear_value_head_dim"): 3 * layers * config.hidden_size * values,
        ("linear_num_value_heads", "linear_value_head_dim", "linear_key_head_dim"): (
            layers * values * config.linear_key_head_dim
        ),
    }
