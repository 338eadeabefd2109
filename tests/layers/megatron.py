"""What tests of the Megatron rooms share: parallel state in this process, small configurations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_fwpkm.config import (
    FwMLPConfig,
    FwPKMConfig,
    ImplementationConfig,
    LinearAttentionConfig,
    ModelConfig,
    ParallelConfig,
    PKMConfig,
    PretrainConfig,
    TrainingConfig,
)
from megatron_fwpkm.distributed import megatron_on_cpu

VOCABULARY = 64

TINY = PretrainConfig(
    model=ModelConfig(
        num_layers=3,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_query_groups=2,
        seq_length=48,
        layer_pattern="swa:5,fa,swa:9",
        init_method_std=0.1,
    ),
    implementation=ImplementationConfig(transformer_impl="local"),  # on the CPU, also where there is a GPU
    linear_attention=LinearAttentionConfig(
        conv_kernel_dim=3, key_head_dim=6, value_head_dim=5, num_key_heads=4, num_value_heads=8
    ),
    fwpkm=FwPKMConfig(layer_numbers=(2, 3), num_subkeys=8, key_dim=16, value_dim=16, topk=4, chunk_size=16),
    fwmlp=FwMLPConfig(hidden_size=24, key_dim=16, value_dim=16, chunk_size=16),
)

STATIC_MEMORY = PKMConfig(num_heads=2, num_subkeys=8, key_dim=8, value_dim=16, topk=4)
"""Sizes that go with TINY; it stands in no layer."""


def initialize(tensor_parallel: int = 1, context_parallel: int = 1) -> None:
    """Megatron's parallel state over the processes there are, or over this one alone; may be called again."""
    megatron_on_cpu.install()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_parallel, context_parallel_size=context_parallel)
    model_parallel_cuda_manual_seed(7, force_reset_rng=True)


def tiny(
    *,
    sequence_parallel: bool = False,
    bf16: bool = False,
    model: Any = None,
    training: Any = None,
    data: Any = None,
    fwmlp: Any = None,
    pkm: Any = None,
    **fwpkm: Any,
) -> PretrainConfig:
    """TINY with other fields of the memory (keywords), and of other groups (dicts)."""
    return replace(
        TINY,
        model=replace(TINY.model, **(model or {})),
        fwpkm=replace(TINY.fwpkm, **fwpkm),
        pkm=replace(STATIC_MEMORY, **(pkm or {})),
        fwmlp=replace(TINY.fwmlp, **(fwmlp or {})),
        data=replace(TINY.data, **(data or {})),
        parallel=ParallelConfig(sequence_parallel=sequence_parallel),
        training=TrainingConfig(bf16=bf16, **(training or {})),
    )


def batch(batch_size: int = 2, length: int = 48, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, position ids and labels, each [b, s]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (batch_size, length + 1), generator=generator)
    positions = torch.arange(length).expand(batch_size, -1).contiguous()
    return tokens[:, :-1].contiguous(), positions, tokens[:, 1:].contiguous()
