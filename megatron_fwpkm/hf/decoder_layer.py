"""One layer of the decoder, made of the kinds that its configuration names. Ships inside exports."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .cache import FwPKMCache
from .configuration_fwpkm import FwPKMHFConfig
from .kind_modules import layer_modules
from .memory_block import RMSNorm


class FwPKMDecoderLayer(GradientCheckpointingLayer):
    """A memory (in chosen layers), a token mixer and an MLP, each added to the residual stream."""

    def __init__(self, config: FwPKMHFConfig, layer_idx: int):
        super().__init__()
        self.layer_idx, self.hidden_dropout = layer_idx, config.hidden_dropout
        memory, mixer, mlp = layer_modules(config, layer_idx)
        self._mixer_name = mixer.attribute
        self.memory = memory.module(config, layer_idx) if memory is not None else None
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.add_module(mixer.attribute, mixer.module(config, layer_idx))
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = mlp.module(config, layer_idx)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], key_mask: Tensor | None = None,
                memory_mode: str = "on", cache: FwPKMCache | None = None, counts: tuple[int, ...] | None = None,
                shared: bool = False) -> Tensor:  # fmt: skip
        """Map [B, T, hidden_size] to the same; `counts` and `shared` as in the memory block."""
        if self.memory is not None:
            memories = None if cache is None else cache.memory[self.layer_idx]
            hidden = self.memory(hidden, memories, memory_mode, counts, shared)
        mixed = self.get_submodule(self._mixer_name)(self.input_layernorm(hidden), rotary, key_mask, cache)
        hidden = hidden + F.dropout(mixed, self.hidden_dropout, self.training)
        return hidden + F.dropout(self.mlp(self.post_attention_layernorm(hidden)), self.hidden_dropout, self.training)
