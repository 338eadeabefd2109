"""The static product key memory, which takes the place of an MLP."""

from __future__ import annotations

from collections.abc import Sequence

from ..derived import ShardedCount
from ..layer_kind import LayerKind, Role, weight_bytes
from ..pretrain import PretrainConfig

_PAIR_BYTES = 12
"""Per token, head and slot read: number and weight."""


def _pkm_parameters(config: PretrainConfig) -> ShardedCount:
    """Query with its norm, sub-keys, values, gate and output; linears have biases."""
    pkm, hidden = config.pkm, config.model.hidden_size
    queries = pkm.num_heads * pkm.key_dim
    return ShardedCount(
        sharded=(pkm.num_subkeys**2 + hidden + 1 + hidden) * pkm.value_dim,
        replicated=(hidden + 2 + pkm.num_subkeys) * queries + hidden,  # the last is the output's bias
    )


def _pkm_flops(config: PretrainConfig, layer_number: int) -> float:
    """The linears, the scores of all sub-keys and the rows that are read; the choice only compares."""
    pkm, hidden = config.pkm, config.model.hidden_size
    queries = pkm.num_heads * pkm.key_dim
    reads = pkm.num_heads * pkm.topk * pkm.value_dim
    return 2.0 * (hidden * (queries + 2 * pkm.value_dim) + queries * pkm.num_subkeys + reads)


def _pkm_activation_bytes(config: PretrainConfig) -> ShardedCount:
    pkm, training, parallel = config.pkm, config.training, config.parallel
    if training.recompute_granularity == "selective" and "mlp" in training.recompute_modules:
        return ShardedCount()
    size = weight_bytes(config)
    gathered = size * config.model.hidden_size if parallel.sequence_parallel else 0
    queries = 12 * pkm.num_heads * pkm.key_dim
    return ShardedCount(4 * size * pkm.value_dim, queries + _PAIR_BYTES * pkm.num_heads * pkm.topk + gathered)


def _pkm_reach(config: PretrainConfig, layer_number: int) -> str:
    pkm = config.pkm
    heads = f"{pkm.num_heads:,} head{'s' * (pkm.num_heads != 1)}"
    return f"PKM {pkm.num_subkeys**2:,} slots x {pkm.value_dim}, {heads} top-{pkm.topk}"


def _pkm_summary(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    layers = f"{len(layer_numbers)} layer{'s' * (len(layer_numbers) != 1)}"
    return (
        f"In {layers} a static product key memory of {config.pkm.num_subkeys**2:,} slots, which reading does not "
        "change, takes the place of the MLP."
    )


PKM = LayerKind(
    name="pkm",
    role=Role.MLP,
    label="static memory",
    parameters=_pkm_parameters,
    activation_bytes=_pkm_activation_bytes,
    reach=_pkm_reach,
    flops=_pkm_flops,
    summary=_pkm_summary,
    divided=lambda config: {"--pkm-value-dim": config.pkm.value_dim},
    fp8_widths=lambda config: {
        "--pkm-num-heads times --pkm-key-dim": config.pkm.num_heads * config.pkm.key_dim,
        "--pkm-value-dim": config.pkm.value_dim // config.parallel.tensor_model_parallel_size,
    },
    largest_weight=lambda config: (
        config.pkm.num_subkeys**2 * config.pkm.value_dim // config.parallel.tensor_model_parallel_size
    ),
    context_parallel=True,
    separates_documents=True,
)
"""Its row."""
