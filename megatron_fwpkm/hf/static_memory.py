"""The static product key memory, which takes the place of a layer's MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..ops.initialization import sub_key_bound, value_deviation
from ..ops.product_key_memory.read import choose_slots, sum_rows
from .configuration_fwpkm import FwPKMHFConfig
from .memory_block import RMSNorm


class StaticMemory(nn.Module):
    """Linear(r * silu(Linear(x))): r is a weighted sum of the rows that a query made of x finds in a table.

    Every token is read alone, and nothing is written: there is nothing to keep in a cache.
    """

    def __init__(self, config: FwPKMHFConfig, layer_idx: int):
        super().__init__()
        hidden, heads, key_dim, width = (
            config.hidden_size, config.pkm_num_heads, config.pkm_key_dim, config.pkm_value_dim,
        )  # fmt: skip
        self.topk, self.num_heads = config.pkm_topk, heads
        self.query_proj = nn.Linear(hidden, heads * key_dim)
        self.query_norm = RMSNorm(heads * key_dim, config.rms_norm_eps)
        self.sub_keys = nn.Parameter(torch.zeros(heads, 2, config.pkm_num_subkeys, key_dim // 2))
        self.values = nn.Parameter(torch.zeros(config.pkm_num_subkeys**2, width))
        self.gate_proj, self.output_proj = nn.Linear(hidden, width), nn.Linear(width, hidden)

    def init_own(self) -> None:
        """Draw the memory of a model that is not loaded."""
        bound = sub_key_bound(2 * self.sub_keys.shape[3])
        init.uniform_(self.sub_keys, -bound, bound)
        init.normal_(self.values, 0.0, value_deviation(self.values.shape[1]))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, T, hidden_size] to the same."""
        projected = self.query_proj(hidden)
        wide = projected if projected.dtype == torch.float64 else projected.float()
        queries = self.query_norm(wide).flatten(0, 1).unflatten(-1, (self.num_heads, -1))
        slots, weights = choose_slots(queries, self.sub_keys.to(queries.dtype), self.topk)
        gates = self.gate_proj(hidden)
        return self.output_proj(sum_rows(self.values, slots, weights).view_as(gates) * F.silu(gates))
