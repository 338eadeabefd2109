"""The linear layers and norms of a model: Megatron-Core's and ours, or Transformer Engine's."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from ..layers.memory_projections import LOCAL_PROJECTIONS, MemoryProjections
from ..layers.norm import MegatronRMSNorm
from ..layers.table_sharding import ColumnSharding
from .transformer_config import FwPKMTransformerConfig


@dataclass(frozen=True)
class LayerModules:
    """One implementation of what layers are made of.

    Attributes:
        norm: of queries and keys, behind the last layer, and before a mixer or MLP that does not bring its own.
        first_linear: of a token mixer and an MLP; spreads its outputs over tensor-parallel ranks.
        first_linear_has_norm: whether it normalises its inputs, so that no norm stands before it.
        row_linear: spreads its inputs.
        memory: the linears of a memory.
        checkpoint_names: what checkpoints call weights that have other names here, both as beginnings of names within
            a layer.
    """

    norm: type[nn.Module]
    first_linear: type[nn.Module]
    first_linear_has_norm: bool
    row_linear: type[nn.Module]
    memory: MemoryProjections
    checkpoint_names: dict[str, str] = field(default_factory=dict)


LOCAL = LayerModules(
    norm=MegatronRMSNorm,
    first_linear=ColumnParallelLinear,
    first_linear_has_norm=False,
    row_linear=RowParallelLinear,
    memory=LOCAL_PROJECTIONS,
)


def layer_modules(config: FwPKMTransformerConfig) -> LayerModules:
    """The modules of the implementation that was chosen."""
    return LOCAL if config.transformer_impl == "local" else _transformer_engine()


def _transformer_engine() -> LayerModules:
    # Where Transformer Engine is not installed, the names that Megatron has for its modules stand for nothing.
    from megatron.core.extensions import transformer_engine as engine

    return LayerModules(
        norm=engine.TENorm,
        first_linear=engine.TELayerNormColumnParallelLinear,
        first_linear_has_norm=True,
        row_linear=engine.TERowParallelLinear,
        memory=MemoryProjections(_engine_query, _engine_value, _engine_output),
        # One naming on disk, that of the local modules: checkpoints move without a translation.
        checkpoint_names={
            "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
            "self_attention.in_proj.layer_norm_": "input_layernorm.",
            "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
        },
    )


def _engine_query(config: TransformerConfig, inputs: int, outputs: int, sharding: ColumnSharding) -> nn.Module:
    from megatron.core.extensions.transformer_engine import TELinear

    linear = TELinear(
        inputs, outputs, parallel_mode="duplicated", config=_on_whole_sequences(config), init_method=_drawn_later,
        bias=True, skip_bias_add=False, skip_weight_param_allocation=False,
    )  # fmt: skip
    for parameter in linear.parameters():
        parameter.tensor_model_parallel = False  # it says True, and the norm of the gradients would count every copy
    return linear


def _engine_value(config: TransformerConfig, inputs: int, outputs: int, sharding: ColumnSharding) -> nn.Module:
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear

    return TEColumnParallelLinear(
        inputs, outputs, config=_on_whole_sequences(config), init_method=_drawn_later, gather_output=False,
        bias=True, skip_bias_add=False, is_expert=False, tp_group=sharding.group,
    )  # fmt: skip


def _engine_output(config: TransformerConfig, inputs: int, outputs: int, sharding: ColumnSharding) -> nn.Module:
    from megatron.core.extensions.transformer_engine import TERowParallelLinear

    return TERowParallelLinear(
        inputs, outputs, config=config, init_method=_drawn_later, bias=True, input_is_parallel=True,
        skip_bias_add=True, is_expert=False, tp_group=sharding.group,
    )  # fmt: skip


def _on_whole_sequences(config: TransformerConfig) -> TransformerConfig:
    """The configuration for modules whose inputs are whole in spite of sequence parallelism."""
    own = copy(config)
    own.sequence_parallel = False
    return own


def _drawn_later(weight: Tensor) -> Tensor:
    """In place of an initialisation, which would take numbers that local modules do not take."""
    return weight
