"""The gated delta net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..derived import ShardedCount
from ..layer_kind import LayerKind, Role, weight_bytes
from ..neighbours import near_multiples
from ..pretrain import PretrainConfig

_CHUNK = 64
"""Tokens of a chunk, as in `ops.gated_delta_net.chunked`."""


class _Widths(NamedTuple):
    """Of all heads together."""

    keys: int
    values: int

    @classmethod
    def of(cls, config: PretrainConfig) -> _Widths:
        """From the options."""
        linear = config.linear_attention
        return cls(linear.num_key_heads * linear.key_head_dim, linear.num_value_heads * linear.value_head_dim)

    @property
    def convolved(self) -> int:
        """Queries, keys and values."""
        return 2 * self.keys + self.values

    def projected(self, config: PretrainConfig) -> int:
        """And output gates, decays and write strengths."""
        return self.convolved + self.values + 2 * config.linear_attention.num_value_heads


def _gdn_parameters(config: PretrainConfig) -> ShardedCount:
    linear, hidden, widths = config.linear_attention, config.model.hidden_size, _Widths.of(config)
    return ShardedCount(
        sharded=hidden * (widths.projected(config) + widths.values)
        + widths.convolved * linear.conv_kernel_dim
        + 2 * linear.num_value_heads,  # dt_bias and A_log
        replicated=linear.value_head_dim,  # the norm
    )


def _gdn_activation_bytes(config: PretrainConfig) -> ShardedCount:
    """What stands between the projections is not kept where it is computed again."""
    linear, widths, size = config.linear_attention, _Widths.of(config), weight_bytes(config)
    outer = size * (widths.projected(config) + widths.values)
    training = config.training
    if training.recompute_granularity == "selective" and "core_attn" in training.recompute_modules:
        return ShardedCount(sharded=outer)
    per_head = 4 * (6 * _CHUNK + 8 * linear.key_head_dim + 8 * linear.value_head_dim)
    states = 4 * linear.key_head_dim * linear.value_head_dim * 3 // _CHUNK
    return ShardedCount(sharded=outer + 3 * size * widths.convolved + linear.num_value_heads * (per_head + states))


def _gdn_flops(config: PretrainConfig, layer_number: int) -> float:
    """Linears, convolution; per value head the state answers the key, is corrected, and answers the query."""
    linear, widths = config.linear_attention, _Widths.of(config)
    linears = config.model.hidden_size * (widths.projected(config) + widths.values)
    return 2.0 * (linears + widths.convolved * linear.conv_kernel_dim + 3 * widths.values * linear.key_head_dim)


def _gdn_problems(config: PretrainConfig) -> Iterator[str]:
    linear, parallel = config.linear_attention, config.parallel
    if linear.num_value_heads % linear.num_key_heads:
        yield (
            f"--linear-num-value-heads {linear.num_value_heads} is not divisible by --linear-num-key-heads "
            f"{linear.num_key_heads}: use {near_multiples(linear.num_value_heads, linear.num_key_heads)}"
        )
    context, tensor = parallel.context_parallel_size, parallel.tensor_model_parallel_size
    if context > 1 and linear.num_key_heads % (tensor * context):
        yield (
            f"--linear-num-key-heads {linear.num_key_heads} is not divisible by --tensor-model-parallel-size {tensor} "
            f"times --context-parallel-size {context}, between whose ranks the heads are divided: use "
            f"{near_multiples(linear.num_key_heads, tensor * context)}"
        )


def _gdn_summary(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    count, layers = len(layer_numbers), config.model.num_layers
    where = "In all layers" if count == layers else f"In {count} of {layers} layers"
    return f"{where} a gated delta net carries the text in a state of fixed size."


def _gdn_reach(config: PretrainConfig, layer_number: int) -> str:
    linear = config.linear_attention
    heads = f"{linear.num_value_heads} head{'s' * (linear.num_value_heads != 1)}"
    return f"all tokens before, in a state of {heads} x {linear.key_head_dim} x {linear.value_head_dim}"


def _gdn_fp8_widths(config: PretrainConfig) -> dict[str, int]:
    widths, ranks = _Widths.of(config), config.parallel.tensor_model_parallel_size
    return {
        "the width of all queries, keys, values, gates, decays and strengths": widths.projected(config) // ranks,
        "the width of all values": widths.values // ranks,
    }


GATED_DELTA_NET = LayerKind(
    name="gdn",
    role=Role.MIXER,
    label="gated delta net",
    parameters=_gdn_parameters,
    activation_bytes=_gdn_activation_bytes,
    flops=_gdn_flops,
    reach=_gdn_reach,
    summary=_gdn_summary,
    problems=_gdn_problems,
    divided=lambda config: {
        "--linear-num-key-heads": config.linear_attention.num_key_heads,
        "--linear-num-value-heads": config.linear_attention.num_value_heads,
    },
    fp8_widths=_gdn_fp8_widths,
    libraries=("fla",),
    context_parallel=True,
    separates_documents=True,
)
"""Its row."""
