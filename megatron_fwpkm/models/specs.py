"""Layer specs: which modules megatron builds the model from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor

from ..layers.seeding import seeded
from .kind_specs import BRINGS_NORM, KIND_SPECS
from .layer_modules import LayerModules, layer_modules
from .offload import offloading
from .transformer_config import FwPKMTransformerConfig


@dataclass
class FwPKMTransformerLayerSubmodules(TransformerLayerSubmodules):
    """Modules of a layer; `memory` stands before everything else and keeps the residual stream's shape."""

    memory: ModuleSpec | type = IdentityOp


class FwPKMTransformerLayer(TransformerLayer):
    """A transformer layer that passes its input through a memory first.

    Its weights depend on (seed, layer number) only, so every pipeline layout begins with the same model.

    Args:
        config: transformer configuration.
        submodules: what to build.
        layer_number: counted from 1 within the model chunk.
        kwargs: passed on to megatron's layer.
    """

    def __init__(
        self,
        config: FwPKMTransformerConfig,
        submodules: FwPKMTransformerLayerSubmodules,
        layer_number: int = 1,
        **kwargs: object,
    ) -> None:
        offset = get_transformer_layer_offset(config, kwargs.get("vp_stage"))
        self._offloaded = layer_number <= config.offloaded_layers
        with seeded(config.init_seed, "layer", layer_number + offset):
            super().__init__(config, submodules, layer_number, **kwargs)
            memory_kwargs = {} if submodules.memory is IdentityOp else {"pg_collection": self.pg_collection}
            self.memory = build_module(
                submodules.memory, config=config, layer_number=self.layer_number, **memory_kwargs
            )

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        """Pass `hidden_states` [s, b, h] through memory, token mixer and MLP; the rest as in megatron's layer."""
        return self.forward_without_memory(self.memory(hidden_states), *args, **kwargs)

    def forward_without_memory(
        self, hidden_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """Pass what the memory made, [s, b, h], through token mixer and MLP: what may be recomputed or offloaded."""
        with self._offloading():
            return super().forward(hidden_states, *args, **kwargs)

    def _offloading(self) -> AbstractContextManager[None]:
        return offloading(self.parameters()) if self._offloaded else nullcontext()


def layer_spec(config: FwPKMTransformerConfig, layer_number: int) -> ModuleSpec:
    """The spec of one layer.

    Args:
        config: transformer configuration.
        layer_number: counted from 1 over the whole model; decides what the layer is made of.
    """
    parts = config.layer_plan[layer_number - 1]
    memory = IdentityOp if parts.memory is None else KIND_SPECS[parts.memory](config, layer_number)
    modules = layer_modules(config)
    mixer, mlp = KIND_SPECS[parts.mixer](config, layer_number), KIND_SPECS[parts.mlp](config, layer_number)
    return ModuleSpec(
        module=FwPKMTransformerLayer,
        submodules=FwPKMTransformerLayerSubmodules(
            memory=memory,
            input_layernorm=_norm_before(mixer, modules),
            self_attention=mixer,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=_norm_before(mlp, modules),
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=modules.checkpoint_names,
        ),
    )


def _norm_before(part: ModuleSpec, modules: LayerModules) -> type:
    return IdentityOp if part.metainfo.get(BRINGS_NORM) else modules.norm


def layer_specs(config: FwPKMTransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The specs of the layers that this pipeline stage builds, and the final norm."""
    offset = get_transformer_layer_offset(config, vp_stage)
    count = get_num_layers_to_build(config, vp_stage)
    specs = [layer_spec(config, offset + number) for number in range(1, count + 1)]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=layer_modules(config).norm)
