"""The toy mixer of test_toy_mixer.py for Transformers: what an export of a model that has it ships."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from megatron_fwpkm.hf.configuration_fwpkm import FwPKMHFConfig
from megatron_fwpkm.hf.kind_modules import KindModules, register_modules


class RunningMeanState(CacheLayerMixin):
    """The mean so far, [B, hidden_size]."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: there are no keys."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # as older releases call it

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self.state = self.state[indices]


class RunningMean(nn.Module):
    """out(m), with m_t = d_t * m_(t-1) + (1 - d_t) * value(x_t) and d_t = sigmoid(decay(x_t)) per channel."""

    def __init__(self, config: FwPKMHFConfig, layer_idx: int):
        super().__init__()
        self.layer_idx, width = layer_idx, config.hidden_size
        self.decay_proj = nn.Linear(width, width, bias=False)
        self.value_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, rotary: Any, key_mask: Tensor | None, cache: Any) -> Tensor:
        """Map [B, T, hidden_size] to the same."""
        decays, values = torch.sigmoid(self.decay_proj(hidden)), self.value_proj(hidden)
        kept = None if cache is None else cache.layers[self.layer_idx]
        means = [values.new_zeros(values[:, 0].shape) if kept is None or kept.state is None else kept.state]
        for decay, value in zip(decays.unbind(1), values.unbind(1), strict=True):
            means.append(decay * means[-1] + (1 - decay) * value)
        every = torch.stack(means, 1)
        if kept is not None:  # what stands at the end of a row may be no token
            last = torch.full((len(every),), hidden.shape[1], device=every.device)
            kept.state = every[torch.arange(len(every)), last - (0 if cache.shift is None else cache.shift)]
        return self.out_proj(every[:, 1:])


register_modules("running_mean", KindModules("running_mean", RunningMean, lambda config, layer_idx: RunningMeanState()))
