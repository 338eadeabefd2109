"""From the kind of a part of a layer to the modules that Megatron builds it from: one table."""

from __future__ import annotations

from collections.abc import Callable

from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec

from ..layers.fast_weight_memory import FastWeightMemoryLayer
from .layer_modules import core_attention, layer_modules
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
            core_attention=core_attention(config, layer_number),
            linear_proj=modules.row_linear,
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )


def _swiglu(config: FwPKMTransformerConfig, layer_number: int) -> ModuleSpec:
    modules = layer_modules(config)
    return ModuleSpec(
        module=MLP,
        metainfo={BRINGS_NORM: modules.first_linear_has_norm},
        submodules=MLPSubmodules(linear_fc1=modules.first_linear, linear_fc2=modules.row_linear),
    )


def _fwpkm(config: FwPKMTransformerConfig, layer_number: int) -> ModuleSpec:
    return ModuleSpec(module=FastWeightMemoryLayer, submodules=layer_modules(config).memory)


register_spec("attention", _attention)
register_spec("swiglu", _swiglu)
register_spec("fwpkm", _fwpkm)
