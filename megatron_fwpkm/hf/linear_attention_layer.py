"""The gated delta net as a token mixer, and what a cache keeps for it. Ships inside exports.

Its weights have the names and layouts of Qwen3-Next's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import LinearAttentionLayer

from ..ops.gated_delta_net.delta_net import (
    INITIAL_DECAY_RATES,
    DeltaNetState,
    DeltaNetWeights,
    gated_delta_net,
    head_channels,
)
from .configuration_fwpkm import FwPKMHFConfig

if TYPE_CHECKING:
    from .cache import FwPKMCache


class DeltaNetLayer(LinearAttentionLayer):
    """The state of every head, and the last inputs of the convolution, in the fields of Transformers' own layer."""

    @property
    def state(self) -> DeltaNetState | None:
        """What the text so far has left; None at its beginning."""
        if not self.has_previous_state[0]:
            return None
        return DeltaNetState(self.conv_states[0].transpose(1, 2), self.recurrent_states[0])

    def keep(self, state: DeltaNetState) -> None:
        """Put the state after more tokens in the place of the one before; gradients may pass from one to the other."""
        history = state.history.transpose(1, 2)
        self.conv_states[0], self.recurrent_states[0] = history.clone(), state.recurrent
        self.device, self.dtype, self.conv_kernel_size[0] = history.device, history.dtype, history.shape[-1]
        for flags in (self.is_conv_states_initialized, self.is_recurrent_states_initialized, self.has_previous_state):
            flags[0] = True

    def tensors(self) -> dict[str, Tensor]:
        """What is kept, by name; empty before the first token."""
        return {} if self.state is None else {"history": self.state.history, "recurrent": self.state.recurrent}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put what `tensors()` has given in the place of what is kept; raises ValueError where it is missing."""
        history, recurrent = tensors.get("history"), tensors.get("recurrent")
        if history is None or recurrent is None:
            raise ValueError("the state of linear attention is missing")
        self.keep(DeltaNetState(history, recurrent))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        if self.has_previous_state[0]:
            self.reorder_cache(torch.arange(len(self.recurrent_states[0])).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the sequences."""
        self.reorder_cache(indices)


class DeltaNetNorm(nn.Module):
    """The weight of the norm behind the heads, which the output gate is part of; it starts at 1."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def init_own(self) -> None:
        """Begin anew."""
        init.ones_(self.weight)


class FwPKMGatedDeltaNet(nn.Module):
    """Linear attention whose state forgets and corrects itself: see the README of the operation."""

    def __init__(self, config: FwPKMHFConfig, layer_idx: int):
        super().__init__()
        self.layer_idx, self.eps, self.key_width = layer_idx, config.rms_norm_eps, config.linear_key_head_dim
        self.key_heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
        value_width, width, repeats = config.linear_value_head_dim, config.hidden_size, value_heads // self.key_heads
        self.widths = head_channels(self.key_width, value_width, repeats)
        channels = self.key_heads * sum(self.widths)
        self.in_proj_qkvz = nn.Linear(width, channels + value_heads * value_width, bias=False)
        self.in_proj_ba = nn.Linear(width, 2 * value_heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, config.linear_conv_kernel_dim, groups=channels, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(value_heads))
        self.A_log = nn.Parameter(torch.zeros(value_heads))
        self.norm = DeltaNetNorm(value_width)
        self.out_proj = nn.Linear(value_heads * value_width, width, bias=False)

    def init_own(self) -> None:
        """Begin anew, as training does."""
        init.ones_(self.dt_bias)
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(*INITIAL_DECAY_RATES).log())

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], key_mask: Tensor | None,
                cache: FwPKMCache | None) -> Tensor:  # fmt: skip
        """Mix the tokens of [B, T, hidden_size]; a text goes on where the cache's has ended."""
        kept = None if cache is None else cache.layers[self.layer_idx]
        counts = None if cache is None or cache.shift is None else hidden.shape[1] - cache.shift
        weights = DeltaNetWeights(self._taps(), self.dt_bias, self.A_log, self.norm.weight)
        mixed, state = gated_delta_net(
            self._by_head(self.in_proj_qkvz(hidden)), self._by_head(self.in_proj_ba(hidden)), weights, self.key_width,
            self.eps, None if kept is None else kept.state, counts=counts,
        )  # fmt: skip
        if kept is not None:
            kept.keep(state)
        return self.out_proj(mixed)

    def _by_head(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.key_heads, -1))

    def _taps(self) -> Tensor:
        """Of the convolution, [key heads, channels of a key head, taps]; its module has all queries, keys, values."""
        parts = self.conv1d.weight.squeeze(1).split([self.key_heads * width for width in self.widths])
        return torch.cat([part.unflatten(0, (self.key_heads, -1)) for part in parts], 1)
