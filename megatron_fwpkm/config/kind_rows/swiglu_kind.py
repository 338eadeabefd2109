"""The SwiGLU MLP."""

from __future__ import annotations

from ..derived import ShardedCount, ffn_hidden_size
from ..layer_kind import LayerKind, Role, weight_bytes
from ..pretrain import PretrainConfig


def _swiglu_parameters(config: PretrainConfig) -> ShardedCount:
    model = config.model
    hidden, ffn, bias = model.hidden_size, ffn_hidden_size(model), int(model.add_bias_linear)
    return ShardedCount(sharded=(hidden + bias) * 2 * ffn + ffn * hidden, replicated=bias * hidden)


def _swiglu_activation_bytes(config: PretrainConfig) -> ShardedCount:
    training = config.training
    if training.recompute_granularity == "selective" and "mlp" in training.recompute_modules:
        return ShardedCount()
    return ShardedCount(sharded=5 * weight_bytes(config) * ffn_hidden_size(config.model))


def _swiglu_flops(config: PretrainConfig, layer_number: int) -> float:
    return 2.0 * 3 * config.model.hidden_size * ffn_hidden_size(config.model)


SWIGLU = LayerKind(
    name="swiglu",
    role=Role.MLP,
    label="mlp",
    parameters=_swiglu_parameters,
    activation_bytes=_swiglu_activation_bytes,
    flops=_swiglu_flops,
    divided=lambda config: {"--ffn-hidden-size": ffn_hidden_size(config.model)},
    fp8_widths=lambda config: {
        "--ffn-hidden-size": ffn_hidden_size(config.model) // config.parallel.tensor_model_parallel_size
    },
    largest_weight=lambda config: (
        config.model.hidden_size * 2 * ffn_hidden_size(config.model) // config.parallel.tensor_model_parallel_size
    ),
    context_parallel=True,
    separates_documents=True,
)
"""Its row."""
