"""The block around a memory: norms, projections, gate and residual, and how they are sharded (DESIGN section 2)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from ..config.derived import MemoryLifetime
from ..ops.memory_block.block_steps import TORCH_STEPS, BlockSteps, block_steps
from ..ops.memory_block.block_types import NormWeights, StandardValues
from ..ops.named_ranges import named_range
from .documents import document_lengths
from .memory_projections import MemoryProjections
from .norm import MegatronRMSNorm
from .table_sharding import ColumnSharding, ContextSharding

# Which dimension of a parameter is spread over tensor-parallel ranks; all others are replicated.
_SHARDED_DIMENSIONS = {"value_proj.weight": 0, "value_proj.bias": 0, "output_norm.weight": 0, "output_proj.weight": 1}


class BlockOptions(MemoryLifetime, Protocol):
    """What the block needs of a memory's options."""

    @property
    def value_dim(self) -> int:
        """Width of values and of what the memory returns."""

    @property
    def gate(self) -> bool:
        """Whether there is a gate."""

    @property
    def gate_bias_init(self) -> float:
        """Initial bias of the gate."""

    @property
    def normalize_targets(self) -> bool:
        """Whether values are standardised."""


class MemoryOutput(Protocol):
    """What the block needs of what a memory returns."""

    @property
    def retrieved(self) -> Tensor:
        """What was read, [b, s, columns]."""


Output = TypeVar("Output", bound=MemoryOutput)


def memory_groups(groups: ProcessGroupCollection | None) -> ProcessGroupCollection:
    """The process groups that a memory is given, or those of megatron's parallel state."""
    if groups is None:
        return ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp", "tp_cp"])
    return groups


class MemoryBlock(MegatronModule):
    """`h + Linear(RMSNorm(g * r + (1 - g) * v))` around a memory, which a subclass brings: it says what r is.

    With hidden state h: query q = Linear(RMSNorm(h)), value v = zscore(Linear(RMSNorm(h))), gate g =
    sigmoid(Linear(RMSNorm(h))), each with its own norm; r is what the memory returns for q. Without a gate r + v takes
    the place of the mixture, as in the authors' code. A memory writes in training and in evaluation alike; what is
    written lasts until a reset, or, where every sequence owns a memory, until the sequence ends.

    Attributes:
        uses_weights_of_parts: it reads and returns weights of its linears and norms itself.
        streaming: with the boundary `carry`, keep the tokens that wait at the end of a forward for the next one, which
            continues the same texts. Otherwise the complete pairs among them are written at the end, and the rest is
            forgotten.
        document_starts: [b, whole sequence] bool for a reset at documents, best on the CPU, True at the first token of
            every document; None when every sequence is one document.
    """

    uses_weights_of_parts = True
    document_starts: Tensor | None
    streaming: bool
    table_dtype: torch.dtype

    def _build_block(
        self,
        config: TransformerConfig,
        options: BlockOptions,
        query_width: int,
        groups: ProcessGroupCollection,
        submodules: MemoryProjections,
    ) -> None:
        """Make norms and projections, with weights that do not depend on the layout."""
        self.block_options, self.tp_group = options, groups.tp
        self.sharding, self.context = ColumnSharding(groups.tp, options.value_dim), ContextSharding(groups.cp)
        self.streaming, self.document_starts = False, None
        hidden, values, ranks = config.hidden_size, options.value_dim, self.sharding
        self.query_norm = self._norm(hidden)
        self.query_proj = submodules.query(config, hidden, query_width, ranks)
        self.value_norm = self._norm(hidden)
        self.value_proj = submodules.value(config, hidden, values, ranks)
        if options.gate:
            self.gate_norm = self._norm(hidden)
            self.gate_proj = nn.utils.skip_init(nn.Linear, hidden, 1, dtype=config.params_dtype)
        self.output_norm = self._norm(values // ranks.size)
        self.output_proj = submodules.output(config, values, hidden, ranks)
        self._initialize_parameters()

    def _norm(self, width: int) -> MegatronRMSNorm:
        """A norm that sees whole sequences."""
        return MegatronRMSNorm(self.config, width, self.config.layernorm_epsilon, on_sequence_shards=False)

    @torch.no_grad()
    def _initialize_parameters(self) -> None:
        """Draw whole linears and keep this rank's part, so that all tensor-parallel sizes begin alike."""
        for name, parameter in self.named_parameters():
            dimension = _SHARDED_DIMENSIONS.get(name)
            if dimension is not None and not hasattr(parameter, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(parameter, self.sharding.size > 1, dimension, 1)
            if parameter.dim() == 2:
                shape = list(parameter.shape)
                if dimension is not None:
                    shape[dimension] *= self.sharding.size
                whole = self.config.init_method(torch.empty(shape))
                part = whole if dimension is None else whole.chunk(self.sharding.size, dimension)[self.tp_group.rank()]
                parameter.copy_(part)
            elif name.endswith(".bias"):
                parameter.fill_(self.block_options.gate_bias_init if name == "gate_proj.bias" else 0.0)
        # The only parameter that is used on sequence shards: it is added after the reduce-scatter.
        bias: Any = self.output_proj.bias
        bias.sequence_parallel = self.config.sequence_parallel

    def forward(self, hidden_states: Tensor, write_mask: Tensor | None = None) -> Tensor:
        """Read, write, and add the result to the residual stream.

        Args:
            hidden_states: [s, b, h], or this rank's [s / tp, b, h] with sequence parallelism; with context
                parallelism s counts the tokens of this rank's two pieces.
            write_mask: [b, whole sequence], 0 where a token must not be written (padding); default all are.

        Returns:
            Like `hidden_states`.

        Raises:
            ValueError: `document_starts` do not fit the sequences.
        """
        sharding, sequence_parallel = self.sharding, self.config.sequence_parallel
        x = sharding.gather_sequence(hidden_states) if sequence_parallel else hidden_states
        steps = self._steps(x.shape[-1])
        inputs = steps.normalize_hidden(x, self._norm_weights(), self.query_norm.eps, self.table_dtype)
        queries, _ = self.query_proj(inputs.queries)
        projected_values, _ = self.value_proj(inputs.values)
        values = self._standard_values(projected_values, steps)
        with named_range(f"memory of layer {self.layer_number}"):
            reads = self._remember(queries, values.targets, inputs.gates, write_mask)
        gates = None if inputs.gates is None else sharding.copy_to_shards(inputs.gates)
        norm = self.output_norm
        output = steps.mix_reads(reads, values.mixed, gates, norm.weight, norm.eps, x.dtype, sharding)
        projected, bias = self.output_proj(output)
        return steps.add_output(hidden_states if sequence_parallel else inputs.residual, projected, bias)

    def _steps(self, width: int) -> BlockSteps:
        """What goes with the memory's implementation; `torch.compile` makes kernels of its own of the form in torch."""
        if torch.compiler.is_compiling():
            return TORCH_STEPS
        return block_steps(self._implementation(), width, self.output_norm.weight.shape[0])

    def _norm_weights(self) -> NormWeights:
        """The weights that are applied to the hidden state before anything is projected."""
        query, value = self.query_norm.weight, self.value_norm.weight
        if not self.block_options.gate:
            return NormWeights(query, value)
        return NormWeights(query, value, self.gate_norm.weight, self.gate_proj.weight, self.gate_proj.bias)

    def _standard_values(self, projected: Tensor, steps: BlockSteps) -> StandardValues:
        """The values in the dtype of the memory, standardised unless the options say otherwise."""
        if self.block_options.normalize_targets:
            return steps.standardize_values(projected, self.table_dtype, self.sharding)
        values = projected.to(self.table_dtype)
        return StandardValues(values, values)

    def _implementation(self) -> str:
        """The implementation of the memory, by its name, which is that of the steps around it."""
        return "torch"

    @abstractmethod
    def _remember(self, queries: Tensor, values: Tensor, gates: Tensor | None, mask: Tensor | None) -> Tensor:
        """What the memory returns, [s, b, columns], for `queries` [s, b, width]; its fast weights move on.

        Args:
            queries: the same on all tensor-parallel ranks; of this rank's tokens with context parallelism.
            values: [s, b, columns], this rank's.
            gates: [s, b, 1], or None.
            mask: [b, whole sequence], or None.
        """

    def _read_apart(
        self,
        read: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Output],
        queries: Tensor,
        targets: Tensor,
        gates: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[list[Output], Tensor]:
        """Let `read` have every text of a micro-batch alone, and put together what it returns.

        Args:
            read: of the inputs below the part of one text, with b = 1; it must leave the memory as it was.
            queries: [b, s, ...], as targets; gates and mask are [b, s] or None.
            targets: likewise.
            gates: likewise.
            mask: likewise.

        Returns:
            What `read` returned of every text, and what was read of all of them, [b, s, columns].
        """
        sequences, tokens = queries.shape[:2]
        outputs = [
            read(queries[text], targets[text], *(None if x is None else x[text] for x in (gates, mask)))
            for text in self._texts(sequences, tokens)
        ]
        return outputs, torch.cat([output.retrieved for output in outputs], dim=1).view(sequences, tokens, -1)

    def _texts(self, num_sequences: int, num_tokens: int) -> Iterator[tuple[slice, slice]]:
        """Where the texts stand that have a memory of their own: documents with a reset at them, else sequences."""
        by_document = self.block_options.reset == "document"
        lengths = self._document_lengths(num_sequences, num_tokens) if by_document else [[num_tokens]] * num_sequences
        for sequence, documents in enumerate(lengths):
            start = 0
            for length in documents:
                yield slice(sequence, sequence + 1), slice(start, start + length)
                start += length

    def _document_lengths(self, num_sequences: int, num_tokens: int) -> list[list[int]]:
        """Tokens of the consecutive documents of every sequence."""
        starts = self.document_starts
        if starts is None:
            return [[num_tokens]] * num_sequences
        if tuple(starts.shape) != (num_sequences, num_tokens):
            raise ValueError(
                f"document_starts has shape {list(starts.shape)}, but the batch has {num_sequences} "
                f"sequences of {num_tokens} tokens: set it before every forward, or to None"
            )
        return document_lengths(starts)

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
