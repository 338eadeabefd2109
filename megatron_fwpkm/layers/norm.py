"""RMSNorm of the whole model: weight stored as distance from 1, float32 inside, legal under sequence parallelism."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from ..ops.rms_norm import rms_normalize, scale_normalized


class MegatronRMSNorm(nn.Module):
    """`x * rsqrt(mean(x^2) + eps) * (1 + weight)` with `weight` 0 at the start (DESIGN section 2).

    Args:
        config: gives the parameter dtype and says whether activations are sharded over the sequence.
        hidden_size: width of the last dimension.
        eps: added to the mean square.
        on_sequence_shards: False where the norm sees whole sequences in spite of sequence parallelism, so that its
            gradient is complete on every rank and must not be summed over ranks.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, *, on_sequence_shards: bool = True
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        # Read by megatron's finalize_model_grads, which then sums the gradient over tensor-parallel ranks.
        self.weight.sequence_parallel = config.sequence_parallel and on_sequence_shards  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x` [..., hidden_size]; the result has the dtype of `x`."""
        return scale_normalized(rms_normalize(x, self.eps), self.weight).to(x.dtype)
