"""A fast-weight MLP in the place of the memory, with the same block around it. Ships inside exports."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import initialization as init

from ..ops.fast_weight_mlp.mlp_api import fast_weight_mlp, flush_pending_mlp
from ..ops.fast_weight_mlp.mlp_options import FastMLPOptions
from ..ops.fast_weight_mlp.mlp_state import FastMLPOutput, FastMLPState, FastMLPWeights
from ..ops.fast_weight_mlp.swiglu import hidden_of, read
from ..ops.initialization import mlp_deviation
from ..ops.precision import full_precision
from .call_options import options_of_calls
from .configuration_fwpkm import FwPKMHFConfig
from .memory import LayerMemory, MemoryFunctions
from .memory_block import BlockAroundMemory


class FastWeightMLP(BlockAroundMemory):
    """The block around a fast SwiGLU, whose weights are trained on every chunk (DESIGN 2).

    The buffers of `FastMLPWeights` are the initial weights: float32 whatever the model's dtype.
    """

    table_names = FastMLPWeights._fields

    def __init__(self, config: FwPKMHFConfig, layer_idx: int):
        options, streaming = options_of_calls(FastMLPOptions, config, "fwmlp_")
        super().__init__(
            config.hidden_size, config.fwmlp_key_dim, config.fwmlp_value_dim, options, eps=config.rms_norm_eps,
            gate=config.fwmlp_gate, gate_writes=config.fwmlp_gate_writes,
            normalize_targets=config.fwmlp_normalize_targets, streaming=streaming,
        )  # fmt: skip
        keys, width, values = config.fwmlp_key_dim, config.fwmlp_hidden_size, config.fwmlp_value_dim
        shapes = (width, keys), (width,), (width, keys), (width,), (values, width), (values,)
        for name, shape in zip(self.table_names, shapes, strict=True):
            self.register_buffer(name, torch.zeros(shape))

    def init_own(self) -> None:
        """Draw the initial weights of a model that is not loaded."""
        for weight in self.initial().weights:
            if weight.ndim == 2:
                init.normal_(weight, 0.0, mlp_deviation(weight.shape[1]))
            else:
                init.zeros_(weight)

    def initial(self) -> FastMLPState:
        """The fast weights before any write: the buffers themselves, not copies."""
        return FastMLPState(FastMLPWeights(*(getattr(self, name) for name in self.table_names)))

    def new_memory(self) -> LayerMemory:
        """What a cache holds of this layer at the beginning of a text."""
        return LayerMemory(self.initial(), self.streaming, FUNCTIONS, self.initial)

    @property
    def functions(self) -> MemoryFunctions:
        """What computes it."""
        return FUNCTIONS


def _read_and_write(
    queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None, state: FastMLPState,
    options: FastMLPOptions, *, in_place: bool,
) -> FastMLPOutput:  # fmt: skip
    """`fast_weight_mlp`, which never writes in place."""
    return fast_weight_mlp(queries, targets, gates, state, options, mask=mask)


def _write_pending(state: FastMLPState, options: FastMLPOptions, *, in_place: bool) -> FastMLPOutput:
    """`flush_pending_mlp`, which never writes in place."""
    return flush_pending_mlp(state, options)


def _read_only(queries: Tensor, targets: Tensor, tables: FastMLPState, options: FastMLPOptions) -> Tensor:
    """What tokens retrieve from weights that stand still, [B, T, value_dim]."""
    rows = queries.flatten(0, 1)
    with full_precision(rows.device):
        return read(hidden_of(rows, tables.weights), tables.weights, None).view_as(targets)


FUNCTIONS = MemoryFunctions(_read_and_write, _write_pending, _read_only)
"""What computes a fast-weight MLP: plain torch wherever it runs."""
