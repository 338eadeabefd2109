"""From the kind of a part of a layer to its module, and to what a cache keeps for it: one table.

Ships inside exports, with the modules of kinds that come from outside the package: they register themselves when they
are imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from ..ops.fast_weight_memory.options import MemoryOptions
from ..ops.initialization import initial_mlp_weights, initial_sub_keys, initial_values
from .attention import FullLayer, FwPKMAttention, WindowLayer
from .call_options import options_of_calls
from .configuration_fwpkm import FwPKMHFConfig
from .fast_mlp import FastWeightMLP
from .linear_attention_layer import DeltaNetLayer, FwPKMGatedDeltaNet
from .memory_block import FastWeightProductKeyMemory
from .mlp import FwPKMMLP
from .static_memory import StaticMemory


@dataclass(frozen=True)
class KindModules:
    """A row of the table.

    Attributes:
        attribute: the name of the module in its layer, and so in the names of its weights.
        module: makes it, from the configuration and the index of its layer from 0. A token mixer is called with hidden
            states [B, T, hidden_size], rotary angles, a key mask and the cache (the last two may be None); an MLP with
            hidden states.
        tables: of a memory, draws its fast weights before any write by the names of its buffers, from the
            configuration, the number of its layer from 1, the seed of the run and the dtype of its tables.
        cache: of a token mixer, makes what a cache keeps of a text in that layer.
    """

    attribute: str
    module: Callable[[FwPKMHFConfig, int], nn.Module]
    cache: Callable[[FwPKMHFConfig, int], CacheLayerMixin] | None = None
    tables: Callable[[FwPKMHFConfig, int, int, str], dict[str, Tensor]] | None = None


_MLP = "mlp"
"""The attribute of every MLP: layers name it."""

KIND_MODULES: dict[str, KindModules] = {}
"""By the name of the kind."""


def register_modules(kind: str, modules: KindModules) -> None:
    """Add a row to the table; a second one of the same name takes its place."""
    KIND_MODULES[kind] = modules


def token_mixer(config: FwPKMHFConfig, layer_idx: int) -> KindModules:
    """The row of a layer's token mixer.

    Raises:
        ValueError: the table has no such token mixer.
    """
    name = config.token_mixers[layer_idx]
    known = [kind for kind, modules in KIND_MODULES.items() if modules.cache is not None]
    if name not in known:
        raise ValueError(f"token_mixers contains {name!r}, which is not supported; choose one of: {', '.join(known)}")
    return KIND_MODULES[name]


def layer_modules(config: FwPKMHFConfig, layer_idx: int) -> tuple[KindModules | None, KindModules, KindModules]:
    """The rows of a layer's memory (None where it has none), token mixer and MLP."""
    kinds = {"fwpkm": config.fwpkm_layers, "fwmlp": config.fwmlp_layers}
    memory = next((KIND_MODULES[kind] for kind, layers in kinds.items() if layer_idx in layers), None)
    return memory, token_mixer(config, layer_idx), _mlp(config, layer_idx)


def _mlp(config: FwPKMHFConfig, layer_idx: int) -> KindModules:
    name = config.mlps[layer_idx]
    known = [kind for kind, modules in KIND_MODULES.items() if modules.attribute == _MLP]
    if name not in known:
        raise ValueError(f"mlps contains {name!r}, which is not supported; choose one of: {', '.join(known)}")
    return KIND_MODULES[name]


def new_cache_layers(config: FwPKMHFConfig) -> list[CacheLayerMixin]:
    """What a cache keeps of a text that has not begun, for every layer."""
    made = []
    for index in range(config.num_hidden_layers):
        make = token_mixer(config, index).cache
        assert make is not None
        made.append(make(config, index))
    return made


def _attention_cache(config: FwPKMHFConfig, layer_idx: int) -> CacheLayerMixin:
    window = config.attention_windows[layer_idx]
    return FullLayer() if window is None else WindowLayer(window)


def _memory(config: FwPKMHFConfig, layer_idx: int) -> FastWeightProductKeyMemory:
    options, streaming = options_of_calls(MemoryOptions, config, "fwpkm_")
    return FastWeightProductKeyMemory(
        config.hidden_size, config.fwpkm_num_heads, config.fwpkm_num_subkeys, config.fwpkm_key_dim,
        config.fwpkm_value_dim, options, eps=config.rms_norm_eps, gate=config.fwpkm_gate,
        gate_writes=config.fwpkm_gate_writes, normalize_targets=config.fwpkm_normalize_targets, streaming=streaming,
    )  # fmt: skip


def _product_keys(config: FwPKMHFConfig, layer_number: int, seed: int, table_dtype: str) -> dict[str, Tensor]:
    names = ("num_heads", "num_subkeys", "key_dim", "value_dim")
    sizes = SimpleNamespace(**{name: getattr(config, f"fwpkm_{name}") for name in names}, table_dtype=table_dtype)
    sub_keys, values = initial_sub_keys(sizes, seed, layer_number), initial_values(sizes, seed, layer_number)
    return {"sub_keys": sub_keys, "values": values}


def _fast_mlp(config: FwPKMHFConfig, layer_number: int, seed: int, table_dtype: str) -> dict[str, Tensor]:
    names = ("key_dim", "hidden_size", "value_dim")
    sizes = SimpleNamespace(**{name: getattr(config, f"fwmlp_{name}") for name in names})
    return initial_mlp_weights(sizes, seed, layer_number)._asdict()


register_modules("fa", KindModules("self_attn", FwPKMAttention, _attention_cache))
register_modules("swa", KindModules("self_attn", FwPKMAttention, _attention_cache))
register_modules("gdn", KindModules("linear_attn", FwPKMGatedDeltaNet, lambda config, layer_idx: DeltaNetLayer()))
register_modules("swiglu", KindModules(_MLP, lambda config, layer_idx: FwPKMMLP(config)))
register_modules("pkm", KindModules(_MLP, StaticMemory))
register_modules("fwpkm", KindModules("memory", _memory, tables=_product_keys))
register_modules("fwmlp", KindModules("memory", FastWeightMLP, tables=_fast_mlp))
