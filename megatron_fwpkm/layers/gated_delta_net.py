"""The gated delta net as a Megatron module, its heads spread over tensor- and context-parallel ranks.

megatron-core has a module of that name, which does not run here: it needs flash-linear-attention to be built at all,
has no context parallelism, ignores where documents begin, computes in float32 at most, and draws other weights at every
tensor-parallel size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import checkpoint
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
    sharded_state_dict_default,
)
from torch import Tensor, nn

from ..ops.gated_delta_net.chunked import gated_delta_rule
from ..ops.gated_delta_net.delta_net import (
    INITIAL_DECAY_RATES,
    DeltaNetWeights,
    DeltaRule,
    gated_delta_net,
    head_channels,
)
from .table_sharding import ColumnSharding, ContextSharding

_BY_HEAD = ("convolution", "dt_bias", "A_log")
"""Parameters that are spread over tensor-parallel ranks by their first dimension."""


@dataclass
class GatedDeltaNetLinears:
    """What its two linear layers are built from."""

    in_proj: ModuleSpec | type
    out_proj: ModuleSpec | type


class GatedDeltaNetLayer(MegatronModule):
    """Token mixer whose heads each keep a matrix from keys to values (see the README of `ops.gated_delta_net`).

    Every parameter has its rows key head after key head, so that tensor-parallel ranks have whole heads, of the same
    weights at every size. With context parallelism every rank takes all tokens of some of its heads: the projections
    change hands by all-to-all, and so do the outputs.

    Args:
        config: transformer configuration with `linear_attention`.
        submodules: what its linear layers are built from.
        layer_number: counted from 1 over the whole model.
        rule: what computes the delta rule.
        pg_collection: process groups; default those of megatron's parallel state.
        unused: more of what megatron gives to a self-attention.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: GatedDeltaNetLinears,
        layer_number: int,
        rule: DeltaRule = gated_delta_rule,
        pg_collection: ProcessGroupCollection | None = None,
        **unused: Any,
    ) -> None:
        super().__init__(config)
        if pg_collection is None:
            pg_collection = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp"])
        sizes = config.linear_attention
        self.layer_number, self.rule, self.tp_group = layer_number, rule, pg_collection.tp
        self.context = ContextSharding(pg_collection.cp)
        self.sharding = ColumnSharding(pg_collection.tp, sizes.num_value_heads)
        self.key_width, self.repeats = sizes.key_head_dim, sizes.num_value_heads // sizes.num_key_heads
        self.channels = sum(head_channels(self.key_width, sizes.value_head_dim, self.repeats))
        self.recomputes = config.recompute_granularity == "selective" and "core_attn" in config.recompute_modules

        keys, values = sizes.num_key_heads, sizes.num_value_heads
        projected = keys * (self.channels + self.repeats * sizes.value_head_dim) + 2 * values
        linear: dict[str, Any] = {"config": config, "bias": False, "is_expert": False, "tp_group": pg_collection.tp}
        self.in_proj = build_module(
            submodules.in_proj, config.hidden_size, projected, init_method=config.init_method, gather_output=False,
            skip_bias_add=False, tp_comm_buffer_name="qkv", **linear,
        )  # fmt: skip
        taps, bound = torch.empty(keys * self.channels, sizes.conv_kernel_dim), sizes.conv_kernel_dim**-0.5
        self.convolution = self._part_of(taps.uniform_(-bound, bound))
        self.dt_bias = self._part_of(torch.ones(values))
        self.A_log = self._part_of(torch.empty(values).uniform_(*INITIAL_DECAY_RATES).log())
        self.norm_weight = nn.Parameter(torch.ones(sizes.value_head_dim, dtype=config.params_dtype))
        self.out_proj = build_module(
            submodules.out_proj, values * sizes.value_head_dim, config.hidden_size,
            init_method=config.output_layer_init_method, input_is_parallel=True, skip_bias_add=True,
            tp_comm_buffer_name="proj", **linear,
        )  # fmt: skip

    def _part_of(self, whole: Tensor) -> nn.Parameter:
        """This rank's rows of a parameter, drawn whole so that every layout begins with the same model."""
        part = whole.chunk(self.sharding.size)[self.tp_group.rank()]
        parameter = nn.Parameter(part.to(self.config.params_dtype, copy=True))
        set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)
        return parameter

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **unused: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the tokens of sequences.

        Args:
            hidden_states: [s, b, h], or this rank's [s / tp, b, h] with sequence parallelism; with context parallelism
                s counts the tokens of this rank's two pieces.
            attention_mask: None, or [b, whole sequence] bool, True at the first token of a document.
            unused: more of what megatron gives to a self-attention.

        Returns:
            Like `hidden_states`, and no bias.
        """
        projected, _ = self.in_proj(hidden_states)
        starts = None if attention_mask is None else attention_mask.to(projected.device)
        if self.recomputes and self.training:
            mixed = checkpoint(self._mix, False, projected, starts)
        else:
            mixed = self._mix(projected, starts)
        return self.out_proj(mixed)

    def _mix(self, projected: Tensor, starts: Tensor | None) -> Tensor:
        """From the first linear layer's output to the second one's input, both of this rank's tokens and heads."""
        by_head = self.context.tokens_to_columns(projected).transpose(0, 1)
        by_head = by_head.unflatten(-1, (-1, self._rows_of_head()))
        qkvz, ba = by_head.split([self._rows_of_head() - 2 * self.repeats, 2 * self.repeats], -1)
        weights = DeltaNetWeights(
            self._own_heads(self.convolution).unflatten(0, (-1, self.channels)),
            self._own_heads(self.dt_bias),
            self._own_heads(self.A_log),
            self.sharding.copy_to_shards(self.norm_weight),
        )
        mixed, _ = gated_delta_net(
            qkvz, ba, weights, self.key_width, self.config.layernorm_epsilon, starts=starts, rule=self.rule
        )
        return self.context.columns_to_tokens(mixed.transpose(0, 1))

    def _rows_of_head(self) -> int:
        return self.channels + self.repeats * (self.norm_weight.shape[0] + 2)

    def _own_heads(self, parameter: Tensor) -> Tensor:
        """Of this tensor-parallel rank's heads those of this context-parallel rank."""
        return parameter.chunk(self.context.size)[self.context.rank]

    def sharded_state_dict(  # type: ignore[no-untyped-def]
        self, prefix: str = "", sharded_offsets: tuple[tuple[int, int, int], ...] = (), metadata=None, tp_group=None
    ):
        """Parameters for megatron's distributed checkpoints, sharded so that any tensor-parallel size can load them."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        own = {name: parameter for name, parameter in self.named_parameters(recurse=False)}
        sharded = make_sharded_tensors_for_checkpoint(
            own, prefix, dict.fromkeys(_BY_HEAD, 0), sharded_offsets, tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )  # fmt: skip
        for name, linear in self.named_children():
            sharded |= sharded_state_dict_default(
                linear, f"{prefix}{name}.", sharded_offsets, metadata, tp_group=self.tp_group
            )
        return sharded
