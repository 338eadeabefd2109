"""The MLP of a layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_fwpkm import FwPKMHFConfig


class FwPKMMLP(nn.Module):
    """The MLP of a layer: SwiGLU, down(silu(gate(x)) * up(x))."""

    def __init__(self, config: FwPKMHFConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.linear_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.linear_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.linear_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, T, hidden_size] to the same."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
