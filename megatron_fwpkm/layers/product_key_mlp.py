"""The static product key memory as a Megatron module, in the place of a layer's MLP.

Over tensor-parallel ranks the values are cut by columns, and with them the gate's outputs and the output's inputs, as
an MLP is cut by its inner width. Every rank scores all slots of all tokens, from the same queries and sub-keys, so that
all choose alike without a word; a token's sum over rows becomes whole in the output's sum over ranks, which an MLP has,
too. Cut by rows, like a vocabulary, the values would give the same sum, but a rank's share of the work would depend on
how often its rows are read, every rank would compute the whole gate and output, and the softmax's backward pass would
need another sum over ranks. What crosses ranks here beyond an MLP's sums is, backward, one number per slot read.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.initialization import derived_seed, draw_columns, sub_key_bound, value_deviation
from ..ops.product_key_memory.read import choose_slots, sum_rows
from ..ops.rms_norm import rms_normalize, scale_normalized
from .memory_projections import LOCAL_PROJECTIONS, MemoryProjections
from .norm import MegatronRMSNorm
from .table_sharding import ColumnSharding

VALUES_MARK = "is_product_key_values"
"""Attribute of the values: they have a parameter group of their own."""

# Which dimension of a parameter is spread over tensor-parallel ranks; all others are replicated.
_SHARDED_DIMENSIONS = {"values": 1, "gate_proj.weight": 0, "gate_proj.bias": 0, "output_proj.weight": 1}


class ProductKeyMLP(MegatronModule):
    """`Linear(r * silu(Linear(x)))`, where r is a weighted sum of the rows that a query made of x finds in a table.

    The query is `RMSNorm(Linear(x))`, with one norm over all heads. See `ops/product_key_memory`.

    Attributes:
        topk: slots per head; may be changed between two forwards.
        uses_weights_of_parts: it reads and returns weights of its linears and norms itself.

    Args:
        config: transformer configuration with `pkm` and `init_seed`.
        layer_number: counted from 1 over the whole model.
        submodules: what its linears are built from.
    """

    uses_weights_of_parts = True

    def __init__(
        self, config: TransformerConfig, layer_number: int, submodules: MemoryProjections = LOCAL_PROJECTIONS
    ) -> None:
        super().__init__(config)
        pkm, hidden, dtype = config.pkm, config.hidden_size, config.params_dtype
        self.layer_number, self.topk, self.num_heads = layer_number, pkm.topk, pkm.num_heads
        self.tp_group = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp"]).tp
        self.sharding = ranks = ColumnSharding(self.tp_group, pkm.value_dim)
        queries = pkm.num_heads * pkm.key_dim
        self.query_proj = submodules.query(config, hidden, queries, ranks)
        self.query_norm = MegatronRMSNorm(config, queries, config.layernorm_epsilon, on_sequence_shards=False)
        self.sub_keys = nn.Parameter(torch.empty(pkm.num_heads, 2, pkm.num_subkeys, pkm.key_dim // 2, dtype=dtype))
        self.values = nn.Parameter(torch.empty(pkm.num_subkeys**2, pkm.value_dim // ranks.size, dtype=dtype))
        setattr(self.values, VALUES_MARK, True)
        self.gate_proj = submodules.value(config, hidden, pkm.value_dim, ranks)
        self.output_proj = submodules.output(config, pkm.value_dim, hidden, ranks)
        self._initialize_parameters()

    @torch.no_grad()
    def _initialize_parameters(self) -> None:
        """Draw whole weights and keep this rank's part, so that all tensor-parallel sizes begin alike."""
        size, rank = self.sharding.size, self.tp_group.rank()
        for name, parameter in self.named_parameters():
            dimension = _SHARDED_DIMENSIONS.get(name)
            if dimension is not None and not hasattr(parameter, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(parameter, size > 1, dimension, 1)
            if name.endswith("_proj.weight"):
                shape = [length * size if axis == dimension else length for axis, length in enumerate(parameter.shape)]
                whole = self.config.init_method(torch.empty(shape))
                parameter.copy_(whole if dimension is None else whole.chunk(size, dimension)[rank])
            elif name.endswith(".bias"):
                parameter.zero_()
        pkm = self.config.pkm
        seed = derived_seed(self.config.init_seed, "static memory", self.layer_number)
        generator = torch.Generator().manual_seed(seed)
        bound = sub_key_bound(pkm.key_dim)
        self.sub_keys.copy_(torch.empty(self.sub_keys.shape).uniform_(-bound, bound, generator=generator))
        width = self.values.shape[1]
        columns = slice(rank * width, (rank + 1) * width)
        draw_columns(self.values, pkm.value_dim, columns, value_deviation(pkm.value_dim), generator)
        # The only parameter that is used on sequence shards: it is added after the reduce-scatter.
        bias: Any = self.output_proj.bias
        bias.sequence_parallel = self.config.sequence_parallel

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, None]:
        """Read the memory for every token.

        Args:
            hidden_states: [s, b, h], or this rank's [s / tp, b, h] with sequence parallelism.
            padding_mask: None: only mixtures of experts use it.

        Returns:
            The output, like `hidden_states`, and no bias that is still to be added.
        """
        sharding = self.sharding
        x = sharding.gather_sequence(hidden_states) if self.config.sequence_parallel else hidden_states
        projected, _ = self.query_proj(x)
        queries = scale_normalized(rms_normalize(projected, self.query_norm.eps), self.query_norm.weight)
        per_head = queries.flatten(0, 1).unflatten(-1, (self.num_heads, -1))
        slots, weights = choose_slots(per_head, self.sub_keys.to(queries.dtype), self.topk)
        read = sum_rows(self.values, slots, sharding.copy_to_shards(weights), self._gradient_sink)
        gates, _ = self.gate_proj(x)
        output, bias = self.output_proj(read.view_as(gates) * F.silu(gates))
        # A weight that is returned from a part that is recomputed would become the result of that part, and no leaf.
        return output + bias, None

    def _gradient_sink(self) -> Tensor | None:
        """The buffer of Megatron's DDP, which is told that it has the gradient; None where there is no buffer."""
        buffer: Tensor | None = getattr(self.values, "main_grad", None)
        if buffer is not None:
            self.values.grad_added_to_main_grad = True  # type: ignore[attr-defined]
        return buffer

    def sharded_state_dict(  # type: ignore[no-untyped-def]
        self, prefix: str = "", sharded_offsets: tuple[tuple[int, int, int], ...] = (), metadata=None
    ):
        """Parameters for megatron's distributed checkpoints, sharded so that any tensor-parallel size can load them."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            _SHARDED_DIMENSIONS,
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )
