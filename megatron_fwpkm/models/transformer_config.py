"""megatron-core's transformer configuration with the memory's beside it, made from ours."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional as F

from ..config import FwMLPConfig, FwPKMConfig, LinearAttentionConfig, PKMConfig, PretrainConfig
from ..config.derived import ffn_hidden_size, kv_channels, num_query_groups
from ..config.layer_kinds import LayerParts, layer_plan
from ..config.layer_pattern import layer_windows
from ..config.undo_log_bytes import touchable_slots
from ..distributed.megatron_versions import no_cuda_graphs
from ..libraries.choices import (
    attention_of_layers,
    choose_delta_rule,
    choose_gradient_fusion,
    choose_layers,
    choose_rope,
)
from ..libraries.probes import installed


@dataclass
class FwPKMTransformerConfig(TransformerConfig):
    """What every module of the model is built from.

    Attributes:
        fwpkm: the product key memory.
        fwmlp: the fast-weight MLP.
        pkm: the static memory.
        linear_attention: sizes of linear attention.
        delta_rule: what computes its delta rule, `torch` or `fla`.
        layer_plan: what every layer of the whole model is made of.
        layer_windows: per layer of the whole model the tokens an attention sees to its left, None for all.
        engine_attention: per layer of the whole model whether Transformer Engine computes its attention.
        init_seed: seed of slow weights and initial fast weights.
        yarn_rotary_scaling_factor: Megatron's name for how much YaRN stretches positions; its attention reads it.
        journal_rows: slots of a memory that a step can touch.
        offloaded_layers: layers of a model chunk, from its first, whose activations wait in host memory.
    """

    fwpkm: FwPKMConfig = field(default_factory=FwPKMConfig)
    fwmlp: FwMLPConfig = field(default_factory=FwMLPConfig)
    pkm: PKMConfig = field(default_factory=PKMConfig)
    linear_attention: LinearAttentionConfig = field(default_factory=LinearAttentionConfig)
    delta_rule: str = "torch"
    layer_plan: tuple[LayerParts, ...] = ()
    layer_windows: tuple[int | None, ...] = ()
    engine_attention: tuple[bool, ...] = ()
    init_seed: int = 1234
    journal_rows: int = 0
    offloaded_layers: int = 0
    yarn_rotary_scaling_factor: float = 1.0


def transformer_config(config: PretrainConfig) -> FwPKMTransformerConfig:
    """Translate our configuration for the layout that megatron's parallel state was initialised with."""
    model, training, implementation, found = config.model, config.training, config.implementation, installed()
    dtype = torch.bfloat16 if training.bf16 else torch.float32
    tensor_parallel = parallel_state.get_tensor_model_parallel_world_size()
    return FwPKMTransformerConfig(
        fwpkm=config.fwpkm,
        fwmlp=config.fwmlp,
        pkm=config.pkm,
        linear_attention=config.linear_attention,
        delta_rule=choose_delta_rule(config, found).name,
        layer_plan=layer_plan(config),
        layer_windows=layer_windows(model),
        engine_attention=tuple(name == "te" for name in attention_of_layers(config, found)),
        transformer_impl=choose_layers(config, found).name,
        init_seed=training.seed,
        yarn_rotary_scaling_factor=model.rotary_scaling_factor,
        journal_rows=touchable_slots(config, parallel_state.get_data_parallel_world_size()),
        # Not megatron's cpu_offloading_num_layers, which asks for Transformer Engine.
        offloaded_layers=training.cpu_offloading_num_layers,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=ffn_hidden_size(model),
        num_attention_heads=model.num_attention_heads,
        num_query_groups=num_query_groups(model),
        kv_channels=kv_channels(model),
        normalization="RMSNorm",
        layernorm_zero_centered_gamma=True,  # as in `MegatronRMSNorm`; read by Transformer Engine's norms only
        layernorm_epsilon=model.norm_epsilon,
        qk_layernorm=model.qk_layernorm,
        attention_output_gate=model.attention_output_gate,
        add_bias_linear=model.add_bias_linear,
        gated_linear_unit=True,
        activation_func=F.silu,
        init_method_std=model.init_method_std,
        embedding_init_method_std=model.embedding_init_method_std,
        attention_dropout=model.attention_dropout,
        hidden_dropout=model.hidden_dropout,
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        virtual_pipeline_model_parallel_size=parallel_state.get_virtual_pipeline_model_parallel_world_size(),
        context_parallel_size=parallel_state.get_context_parallel_world_size(),
        # With one rank there is no sequence to share; megatron would warn at every linear.
        sequence_parallel=config.parallel.sequence_parallel and tensor_parallel > 1,
        recompute_granularity=training.recompute_granularity,
        recompute_method=training.recompute_method,
        recompute_num_layers=training.recompute_num_layers,
        recompute_modules=list(training.recompute_modules),
        calculate_per_token_loss=training.calculate_per_token_loss,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=training.bf16,
        # Whole matrices are drawn and cut: one seed gives the same weights at every tensor-parallel size.
        use_cpu_initialization=True,
        # Layers differ (memory, window), so checkpoints keep a tensor per layer.
        hetereogenous_dist_checkpoint=True,
        # The batched form gives wrong gradients with interleaved pipelines, without an error.
        batch_p2p_comm=False,
        fp8=implementation.fp8_format,
        fp8_recipe=implementation.fp8_recipe,
        fp8_margin=implementation.fp8_margin,
        # Fusions of forward need CUDA, Apex or Transformer Engine.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=choose_rope(config, found).name == "on",
        persist_layer_norm=False,
        gradient_accumulation_fusion=choose_gradient_fusion(config, found).name == "on",
        **no_cuda_graphs(),
    )
