"""From the kind of a part of a layer to the modules that Megatron builds it from: one table."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from ..layers.attention import WindowedAttention
from ..layers.fast_weight_memory import FastWeightMemoryLayer
from ..layers.fast_weight_mlp import FastWeightMLPLayer
from ..layers.flash_delta_rule import flash_delta_rule
from ..layers.gated_delta_net import GatedDeltaNetLayer, GatedDeltaNetLinears
from ..layers.product_key_mlp import ProductKeyMLP
from ..ops.gated_delta_net.chunked import gated_delta_rule
from .layer_modules import layer_modules
from .transformer_config import FwPKMTransformerConfig

SpecMaker = Callable[[FwPKMTransformerConfig, int], ModuleSpec]
"""From the configuration and a layer's number in the whole model, from 1, to the spec of a part of it."""

KIND_SPECS: dict[str, SpecMaker] = {}
"""By the name of the kind. A token mixer is called as megatron's self-attention is, an MLP as megatron's MLP, and a
memory with hidden states [s, b, h]; each gives its output and a bias that is to be added, or None, but a memory the
hidden states that go on. A token mixer or MLP whose spec says so in its `metainfo` under `BRINGS_NORM` normalises its
input; before the others stands a norm."""

BRINGS_NORM = "fuse_input_layernorm"
"""Megatron's name for it."""


def register_spec(kind: str, make: SpecMaker) -> None:
    """Add a row to the table; a second one of the same name takes its place."""
    KIND_SPECS[kind] = make


def _attention(config: FwPKMTransformerConfig, layer_number: int) -> ModuleSpec:
    modules = layer_modules(config)
    qk_norm = modules.norm if config.qk_layernorm else IdentityOp
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        metainfo={BRINGS_NORM: modules.first_linear_has_norm},
        submodules=SelfAttentionSubmodules(
            linear_qkv=modules.first_linear,
            core_attention=_core_attention(config, layer_number),
            linear_proj=modules.row_linear,
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )


def _core_attention(config: FwPKMTransformerConfig, layer_number: int) -> Callable[..., nn.Module]:
    """What builds the core attention of a layer (numbers from 1 over the whole model), within its window."""
    build = _engine_attention if config.engine_attention[layer_number - 1] else WindowedAttention
    return partial(build, window=config.layer_windows[layer_number - 1])


def _engine_attention(config: TransformerConfig, *, window: int | None, **arguments: Any) -> nn.Module:
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    own = copy(config)  # Megatron's configuration has one window for all layers
    own.window_size = None if window is None else (window, 0)
    return TEDotProductAttention(config=own, **arguments)


def _gdn(config: FwPKMTransformerConfig, layer_number: int) -> ModuleSpec:
    modules = layer_modules(config)
    return ModuleSpec(
        module=GatedDeltaNetLayer,
        params={"rule": flash_delta_rule if config.delta_rule == "fla" else gated_delta_rule},
        metainfo={BRINGS_NORM: modules.first_linear_has_norm},
        submodules=GatedDeltaNetLinears(in_proj=modules.first_linear, out_proj=modules.row_linear),
    )


def _swiglu(config: FwPKMTransformerConfig, layer_number: int) -> ModuleSpec:
    modules = layer_modules(config)
    return ModuleSpec(
        module=MLP,
        metainfo={BRINGS_NORM: modules.first_linear_has_norm},
        submodules=MLPSubmodules(linear_fc1=modules.first_linear, linear_fc2=modules.row_linear),
    )


def _pkm(config: FwPKMTransformerConfig, layer_number: int) -> ModuleSpec:
    return ModuleSpec(
        module=ProductKeyMLP, params={"layer_number": layer_number}, submodules=layer_modules(config).memory
    )


def _fwpkm(config: FwPKMTransformerConfig, layer_number: int) -> ModuleSpec:
    return ModuleSpec(module=FastWeightMemoryLayer, submodules=layer_modules(config).memory)


def _fwmlp(config: FwPKMTransformerConfig, layer_number: int) -> ModuleSpec:
    return ModuleSpec(module=FastWeightMLPLayer, submodules=layer_modules(config).memory)


register_spec("fa", _attention)
register_spec("swa", _attention)
register_spec("gdn", _gdn)
register_spec("swiglu", _swiglu)
register_spec("pkm", _pkm)
register_spec("fwpkm", _fwpkm)
register_spec("fwmlp", _fwmlp)
