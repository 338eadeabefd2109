"""Attention, full or within a window."""

from __future__ import annotations

from collections.abc import Sequence

from ..derived import ShardedCount, kv_channels, layer_windows, mean_tokens_seen, num_query_groups
from ..layer_kind import LayerKind, Role, weight_bytes
from ..pretrain import PretrainConfig


def _attention_parameters(config: PretrainConfig) -> ShardedCount:
    model = config.model
    hidden, head, bias = model.hidden_size, kv_channels(model), int(model.add_bias_linear)
    queries, keys = model.num_attention_heads * head, num_query_groups(model) * head
    return ShardedCount(
        sharded=(hidden + bias) * (queries + 2 * keys) + queries * hidden,
        replicated=bias * hidden + (2 * head if model.qk_layernorm else 0),
    )


def _attention_activation_bytes(config: PretrainConfig) -> ShardedCount:
    model, size = config.model, weight_bytes(config)
    queries = model.num_attention_heads * kv_channels(model)
    keys_and_values = 2 * num_query_groups(model) * kv_channels(model)
    # Context-parallel ranks attend to the keys and values of all.
    everyones = (6 + size) * keys_and_values * config.parallel.context_parallel_size
    return ShardedCount(sharded=(8 + 3 * size) * queries + everyones)


def _attention_flops(config: PretrainConfig, layer_number: int) -> float:
    model = config.model
    queries, keys = model.num_attention_heads * kv_channels(model), num_query_groups(model) * kv_channels(model)
    linears = model.hidden_size * (2 * queries + 2 * keys)
    seen = mean_tokens_seen(model.seq_length, layer_windows(model)[layer_number - 1])
    return 2.0 * (linears + 2 * queries * seen)  # scores, and the sum of values


def _attention_reach(config: PretrainConfig, layer_number: int) -> str:
    window = layer_windows(config.model)[layer_number - 1]
    if window is None:
        return "all tokens before"
    return f"itself and {window:,} token{'s' * (window != 1)} before"


def _attention_summary(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    windows = [layer_windows(config.model)[number - 1] for number in layer_numbers]
    short = sorted({window + 1 for window in windows if window is not None})  # a token sees itself, too
    sees = [f"windows of {', '.join(map(str, short))} tokens"] if short else []
    if None in windows:
        sees.append(f"the whole text in {windows.count(None)} of {config.model.num_layers} layers")
    return f"Attention sees {' and '.join(sees)}."


def _attention_fp8_widths(config: PretrainConfig) -> dict[str, int]:
    model, ranks = config.model, config.parallel.tensor_model_parallel_size
    head, groups = kv_channels(model), num_query_groups(model)
    return {
        "the width of all query heads": model.num_attention_heads * head // ranks,
        "the width of all query, key and value heads": (model.num_attention_heads + 2 * groups) * head // ranks,
    }


ATTENTION = LayerKind(
    name="attention",
    role=Role.MIXER,
    label="attention",
    parameters=_attention_parameters,
    activation_bytes=_attention_activation_bytes,
    flops=_attention_flops,
    reach=_attention_reach,
    summary=_attention_summary,
    divided=lambda config: {
        "--num-attention-heads": config.model.num_attention_heads,
        "--num-query-groups": num_query_groups(config.model),
    },
    fp8_widths=_attention_fp8_widths,
    context_parallel=True,
    separates_documents=True,
)
"""Its row."""
