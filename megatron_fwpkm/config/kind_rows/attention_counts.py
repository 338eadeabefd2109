"""What the kinds of attention have in common: parameters, bytes and widths."""

from __future__ import annotations

from ..derived import ShardedCount, kv_channels, mean_tokens_seen, num_query_groups
from ..layer_kind import weight_bytes
from ..layer_pattern import layer_window
from ..pretrain import PretrainConfig


def attention_parameters(config: PretrainConfig) -> ShardedCount:
    """Slow weights of one layer's attention."""
    model = config.model
    hidden, head, bias = model.hidden_size, kv_channels(model), int(model.add_bias_linear)
    queries, keys = model.num_attention_heads * head, num_query_groups(model) * head
    return ShardedCount(
        sharded=(hidden + bias) * (_queries_and_gates(config) + 2 * keys) + queries * hidden,
        replicated=bias * hidden + (2 * head if model.qk_layernorm else 0),
    )


def _queries_and_gates(config: PretrainConfig) -> int:
    """Width of the queries, with the gate on what their heads give."""
    queries = config.model.num_attention_heads * kv_channels(config.model)
    return 2 * queries if config.model.attention_output_gate else queries


def attention_activation_bytes(config: PretrainConfig) -> ShardedCount:
    """About what autograd saves of it for one token; the scores are never stored."""
    model, size = config.model, weight_bytes(config)
    queries = model.num_attention_heads * kv_channels(model)
    keys_and_values = 2 * num_query_groups(model) * kv_channels(model)
    # Context-parallel ranks attend to the keys and values of all.
    everyones = (6 + size) * keys_and_values * config.parallel.context_parallel_size
    gate = 3 * size * queries if model.attention_output_gate else 0
    return ShardedCount(sharded=(8 + 3 * size) * queries + gate + everyones)


def attention_flops(config: PretrainConfig, layer_number: int) -> float:
    """Operations of one token: the linears, the scores of the tokens that it sees, and the sum of their values."""
    model = config.model
    queries, keys = model.num_attention_heads * kv_channels(model), num_query_groups(model) * kv_channels(model)
    linears = model.hidden_size * (queries + _queries_and_gates(config) + 2 * keys)
    window, narrowed = layer_window(model, layer_number), config.fwpkm.pswa_probability
    seen = mean_tokens_seen(model.seq_length, window)
    if window is None and narrowed and model.window_size is not None:
        seen = (1 - narrowed) * seen + narrowed * mean_tokens_seen(model.seq_length, model.window_size[0])
    return 2.0 * (linears + 2 * queries * seen)


def attention_fp8_widths(config: PretrainConfig) -> dict[str, int]:
    """Inputs and outputs of its linears on one rank."""
    model, ranks = config.model, config.parallel.tensor_model_parallel_size
    head, groups = kv_channels(model), num_query_groups(model)
    return {
        "the width of all query heads": model.num_attention_heads * head // ranks,
        "the width of all query, key and value heads": (_queries_and_gates(config) + 2 * groups * head) // ranks,
    }


def attention_divided(config: PretrainConfig) -> dict[str, int]:
    """What is spread over tensor-parallel ranks."""
    return {
        "--num-attention-heads": config.model.num_attention_heads,
        "--num-query-groups": num_query_groups(config.model),
    }
