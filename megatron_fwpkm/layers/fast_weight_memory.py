"""The fast-weight product key memory as a Megatron module (DESIGN section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from ..ops import FastWeightOutput, FastWeightState, MemoryOptions, fast_weight_memory_, flush_pending_
from ..ops.named_ranges import named_range
from .documents import document_lengths
from .fast_weight_tables import FastWeightTables
from .memory_projections import LOCAL_PROJECTIONS, MemoryProjections
from .memory_statistics import ForwardRecord, MemoryStatistics, hash_bits
from .norm import MegatronRMSNorm, rms_normalize
from .table_sharding import (
    ColumnSharding,
    ContextSharding,
    MemorySharding,
    rms_normalize_columns,
    standardize,
)

# Which dimension of a parameter is spread over tensor-parallel ranks; all others are replicated.
_SHARDED_DIMENSIONS = {"value_proj.weight": 0, "value_proj.bias": 0, "output_norm.weight": 0, "output_proj.weight": 1}


class FastWeightMemoryLayer(FastWeightTables):
    """`h + Linear(RMSNorm(g * r + (1 - g) * v))`: reads a table of slots for every token and rewrites it per chunk.

    With hidden state h: query q = Linear(RMSNorm(h)), value v = zscore(Linear(RMSNorm(h))), gate g =
    sigmoid(Linear(RMSNorm(h))), each with its own norm; r is what the memory returns for q. Without a gate r + v takes
    the place of the mixture, as in the authors' code. It writes in training and in evaluation alike; what is written
    lasts until a reset (`--fwpkm-reset`).

    Attributes:
        options: numbers and choices of the memory, from the configuration; may be changed between two forwards.
        streaming: with `carry`, keep the tokens that wait at the end of a forward for the next one, which continues
            the same texts. Otherwise the complete pairs among them are written at the end, and the rest is forgotten.
        uses_weights_of_parts: it reads and returns weights of its linears and norms itself.
        document_starts: [b, whole sequence] bool for `--fwpkm-reset document`, best on the CPU, True at the first
            token of every document; None when every sequence is one document.

    Args:
        config: transformer configuration with `fwpkm` and `init_seed`.
        layer_number: counted from 1 over the whole model.
        pg_collection: process groups; default those of megatron's parallel state.
        submodules: what its linears are built from.

    Raises:
        ValueError: the tensor- and context-parallel ranks do not divide the sub-keys or the value dimension.
    """

    uses_weights_of_parts = True

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        pg_collection: ProcessGroupCollection | None = None,
        submodules: MemoryProjections = LOCAL_PROJECTIONS,
    ) -> None:
        if pg_collection is None:
            pg_collection = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp", "tp_cp"])
        fwpkm = config.fwpkm
        context = ContextSharding(pg_collection.cp)
        table_sharding = MemorySharding(pg_collection.tp_cp, context, fwpkm.num_subkeys, fwpkm.value_dim)
        super().__init__(config, layer_number, table_sharding.rows, table_sharding.columns)
        self.tp_group, self.sharding = pg_collection.tp, ColumnSharding(pg_collection.tp, fwpkm.value_dim)
        self.context, self.table_sharding = context, table_sharding
        self.options = MemoryOptions.of(fwpkm)
        self.streaming = False
        self.document_starts: Tensor | None = None
        self._last: ForwardRecord | None = None

        hidden, values, ranks = config.hidden_size, fwpkm.value_dim, self.sharding
        self.query_norm = self._norm(hidden)
        self.query_proj = submodules.query(config, hidden, fwpkm.num_heads * fwpkm.key_dim, ranks)
        self.value_norm = self._norm(hidden)
        self.value_proj = submodules.value(config, hidden, values, ranks)
        if fwpkm.gate:
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
                parameter.fill_(self.config.fwpkm.gate_bias_init if name == "gate_proj.bias" else 0.0)
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
        normalized = rms_normalize(x, self.query_norm.eps)  # shared: the norms differ in their weights only
        queries, _ = self.query_proj(self.query_norm.scale(normalized).to(x.dtype))
        values, _ = self.value_proj(self.value_norm.scale(normalized).to(x.dtype))
        values = values.to(self.sub_keys.dtype)
        if self.config.fwpkm.normalize_targets:
            values = standardize(values, sharding)
        gates = None
        if self.config.fwpkm.gate:
            logits = self.gate_proj(self.gate_norm.scale(normalized).to(x.dtype))
            gates = logits.to(self.sub_keys.dtype).sigmoid()
        with named_range(f"memory of layer {self.layer_number}"):
            output = self._remember(queries, values, gates, write_mask)
        if gates is None:
            output = output + values
        else:
            output = torch.lerp(values, output, sharding.copy_to_shards(gates))
        output = self.output_norm.scale(rms_normalize_columns(output, self.output_norm.eps, sharding)).to(x.dtype)
        projected, bias = self.output_proj(output)
        return hidden_states + projected + bias

    def _remember(self, queries: Tensor, values: Tensor, gates: Tensor | None, mask: Tensor | None) -> Tensor:
        """What the memory returns for `queries` [s, b, heads * key_dim], in [s, b, columns]; its tables move on.

        With context parallelism every rank brings its tokens, and all of them go through this rank's tables.
        """
        queries = self.context.gather_tokens(queries).to(self.sub_keys.dtype)
        gates = None if gates is None else self.context.gather_tokens(gates)
        per_sequence = queries.transpose(0, 1).unflatten(-1, (self.config.fwpkm.num_heads, -1))
        targets = self.context.tokens_to_columns(values).transpose(0, 1)
        weighed = gates is not None and self.config.fwpkm.gate_writes
        token_gates = gates.squeeze(-1).transpose(0, 1) if gates is not None and weighed else None
        if self.config.fwpkm.reset == "document":
            outputs, retrieved = self._read_documents(per_sequence, targets, token_gates, mask)
        else:
            outputs = [self._call(per_sequence, targets, token_gates, mask)]
            retrieved = outputs[0].retrieved
            self._finish(outputs[0].state)
        self._last = ForwardRecord(queries, gates, outputs, self.options.chunk_size)
        return self.context.columns_to_tokens(retrieved.transpose(0, 1))

    def _call(self, queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None) -> FastWeightOutput:
        state = self.fast_weights()
        output = fast_weight_memory_(
            queries, targets, gates, state, self.options, mask=mask, sharding=self._table_sharding()
        )
        if self.config.fwpkm.reset != "document" and output.undo_log is not None:
            self._record(output.undo_log)
        return output

    def _table_sharding(self) -> MemorySharding | None:
        return self.table_sharding if self.table_sharding.size > 1 else None

    def _finish(self, state: FastWeightState) -> None:
        """Keep the waiting tokens of a stream; otherwise write those whose targets are known and forget the rest."""
        if self.streaming:
            self.pending = state.pending
            return
        if state.pending is None:
            return
        with torch.no_grad():
            flushed = flush_pending_(state, self.options, sharding=self._table_sharding())
        if flushed.undo_log is not None:
            self._record(flushed.undo_log)

    def _read_documents(
        self, queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None
    ) -> tuple[list[FastWeightOutput], Tensor]:
        """Run every document of every sequence [b, s, ...] from the initial memory, and undo its writes."""
        outputs: list[FastWeightOutput] = []
        self._touched.zero_()
        for sequence, lengths in enumerate(self._document_lengths(*queries.shape[:2])):
            start = 0
            for length in lengths:
                part = slice(sequence, sequence + 1), slice(start, start + length)
                part_gates, part_mask = (None if x is None else x[part] for x in (gates, mask))
                output = self._call(queries[part], targets[part], part_gates, part_mask)
                if output.undo_log is not None:
                    for rows in output.undo_log.rows:
                        self._touched[rows] = True
                    # Safe before backward, which reads the log and not the table.
                    output.undo_log.undo_(self.fast_weights())
                outputs.append(replace(output, undo_log=None))
                start += length
        retrieved = torch.cat([output.retrieved for output in outputs], dim=1)
        return outputs, retrieved.view(*queries.shape[:2], -1)

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

    def statistics_on_device(self) -> Tensor:
        """Figures of the last forward and of the tables, [5] float64 in the order of `MemoryStatistics`."""
        assert self._last is not None, "statistics were asked for before the first forward"
        return self._last.summarize(self.coverage_on_device())

    def statistics(self) -> MemoryStatistics:
        """The same for the host, which waits for the device."""
        return MemoryStatistics(*self.statistics_on_device().tolist())

    def consistency_hash(self) -> Tensor:
        """A cheap hash (int64 scalar) of what the last forward had alike on all ranks that share this memory.

        These are the chosen slots, the gates and some queries: ranks that differ in one of them write parts of
        different memories. The tables themselves cannot be compared, for every row and column exists once.
        """
        return hash_bits([] if self._last is None else self._last.shared)

    @contextmanager
    def preserve_fast_weights(self, keep: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Undo bit for bit at exit whatever is written, reset or loaded inside, unless `keep` then says that it stays.

        May be nested; only the outermost may keep.
        """
        last = self._last
        with super().preserve_fast_weights(keep):
            yield
        if not keep():
            self._last = last

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
