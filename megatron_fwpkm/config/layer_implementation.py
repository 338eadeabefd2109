"""Which library computes the layers, and how precisely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, Between


@dataclass(frozen=True)
class ImplementationConfig:
    """Implementation of the layers; docs/engines.md says what is chosen when."""

    transformer_impl: Annotated[Literal["auto", "local", "transformer_engine"], NOT_COMPARED] = "auto"
    """Modules of the linear layers and norms: those of Megatron-Core and this project (local), or those of Transformer
    Engine. auto selects transformer_engine where it can be used, and local elsewhere. Checkpoints are the same."""
    attention_backend: Annotated[Literal["auto", "local", "te"], NOT_COMPARED] = "auto"
    """Core attention: torch's scaled dot-product attention (local), or Transformer Engine's (te). With Transformer
    Engine's layers and --bf16, auto selects te in layers with full attention; elsewhere it selects local."""
    linear_attention_backend: Annotated[Literal["auto", "torch", "fla"], NOT_COMPARED] = "auto"
    """Delta rule of linear attention (gdn in --layer-pattern): torch operations (torch), or the Triton kernels of
    flash-linear-attention (fla). auto selects fla where it is installed and CUDA is available, and torch elsewhere."""
    rope_fusion: Annotated[bool | None, NOT_COMPARED] = None
    """Apply RoPE in one kernel of Transformer Engine (default: with its layers, unless positions restart within a
    sequence)."""
    fp8_format: Annotated[Literal["e4m3", "hybrid"] | None, MAY_CHANGE] = None
    """Compute the matrix products of Transformer Engine's linear layers in FP8: e4m3 everywhere, or e5m2 for gradients
    (hybrid). Weights and optimizer keep their precision; the memory's tables, norms, gates, embeddings and attention
    are never in FP8 (default: no FP8)."""
    fp8_recipe: Annotated[Literal["delayed", "tensorwise", "blockwise", "mxfp8"], MAY_CHANGE] = "delayed"
    """With --fp8-format: scaling per tensor from earlier values (delayed) or from the current ones (tensorwise), or per
    block of a tensor (blockwise; mxfp8, which needs a Blackwell GPU)."""
    fp8_margin: Annotated[int, Between(0, 100), MAY_CHANGE] = 0
    """With --fp8-recipe delayed: powers of two between the largest value seen and the largest that FP8 has."""
