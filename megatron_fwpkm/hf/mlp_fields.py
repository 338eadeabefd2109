"""The fields of a layer's MLP in the configuration: which kind each layer has, and the sizes of static memories.

Ships inside exports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_fwpkm import FwPKMHFConfig

DENSE, STATIC_MEMORY = "swiglu", "pkm"
"""The kinds of MLP: SwiGLU, and the static product key memory in its place."""

PKM_LEAST = {"pkm_num_heads": 1, "pkm_num_subkeys": 1, "pkm_key_dim": 2, "pkm_value_dim": 1, "pkm_topk": 1}
"""Fields of a static memory, all whole numbers, and the least that each may be."""


def check_mlps(config: FwPKMHFConfig) -> None:
    """Check the kinds of MLP and the sizes of a complete configuration.

    Raises:
        ValueError: fields do not fit each other.
    """
    if len(config.mlps) != config.num_hidden_layers:
        raise ValueError(
            f"mlps has length {len(config.mlps)}, but must have one entry for each layer "
            f"(num_hidden_layers={config.num_hidden_layers})"
        )
    if STATIC_MEMORY not in config.mlps:
        return
    if config.pkm_key_dim % 2:
        raise ValueError(f"pkm_key_dim={config.pkm_key_dim} must be even: a query has two halves")
    if config.pkm_topk > config.pkm_num_subkeys:
        raise ValueError(f"pkm_topk={config.pkm_topk} must be at most pkm_num_subkeys={config.pkm_num_subkeys}")


def mlp_numbers(config: FwPKMHFConfig) -> dict[tuple[str, ...], int]:
    """How many numbers the parts of all MLPs have, by the fields that say so."""
    dense, static = config.mlps.count(DENSE), config.mlps.count(STATIC_MEMORY)
    hidden, queries = config.hidden_size, config.pkm_num_heads * config.pkm_key_dim
    return {
        ("num_hidden_layers", "hidden_size", "intermediate_size"): 3 * dense * hidden * config.intermediate_size,
        ("pkm_num_subkeys", "pkm_value_dim"): static * config.pkm_num_subkeys**2 * config.pkm_value_dim,
        ("pkm_num_subkeys", "pkm_num_heads", "pkm_key_dim"): static * config.pkm_num_subkeys * queries,
        ("hidden_size", "pkm_num_heads", "pkm_key_dim"): static * hidden * queries,
        ("hidden_size", "pkm_value_dim"): 2 * static * hidden * config.pkm_value_dim,
    }
