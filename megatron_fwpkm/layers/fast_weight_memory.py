"""The fast-weight product key memory as a Megatron module (DESIGN section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from ..config.derived import outlives_sequence
from ..ops import FastWeightOutput, FastWeightState, MemoryOptions, UndoLog, fast_weight_memory_, flush_pending_
from ..ops.dtype_change import to_dtype
from ..ops.fast_weight_memory.implementation_choice import choose_implementation
from .block_around_memory import MemoryBlock, memory_groups
from .cuda_graphs import GraphedForwards
from .fast_weight_tables import FastWeightTables
from .memory_projections import LOCAL_PROJECTIONS, MemoryProjections
from .memory_statistics import ForwardRecord, MemoryStatistics, hash_bits
from .table_sharding import ContextSharding, MemorySharding


class FastWeightMemoryLayer(MemoryBlock, FastWeightTables):
    """Reads a table of slots for every token and rewrites it per chunk, within the block of `MemoryBlock`.

    Attributes:
        options: numbers and choices of the memory, from the configuration; may be changed between two forwards.

    Args:
        config: transformer configuration with `fwpkm` and `init_seed`.
        layer_number: counted from 1 over the whole model.
        pg_collection: process groups; default those of megatron's parallel state.
        submodules: what its linears are built from.

    Raises:
        ValueError: the tensor- and context-parallel ranks do not divide the sub-keys or the value dimension.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        pg_collection: ProcessGroupCollection | None = None,
        submodules: MemoryProjections = LOCAL_PROJECTIONS,
    ) -> None:
        groups, fwpkm = memory_groups(pg_collection), config.fwpkm
        sharding = MemorySharding(groups.tp_cp, ContextSharding(groups.cp), fwpkm.num_subkeys, fwpkm.value_dim)
        FastWeightTables.__init__(self, config, layer_number, sharding.rows, sharding.columns)
        self.table_sharding = sharding
        self.options = MemoryOptions.of(fwpkm)
        self._last: ForwardRecord | None = None
        self._graphs: GraphedForwards | None = None
        self._unrecorded: list[UndoLog] | None = None
        self._build_block(config, fwpkm, fwpkm.num_heads * fwpkm.key_dim, groups, submodules)

    @property
    def table_dtype(self) -> torch.dtype:  # type: ignore[override]
        """What the memory computes in."""
        return self.sub_keys.dtype

    def _implementation(self) -> str:
        return choose_implementation(self.fast_weights(), self.options)

    def capture(self, number: int, sample: Tensor) -> None:
        """Run training from now on in CUDA graphs, with room for `number` micro-batches in flight.

        Args:
            number: at least 1; a forward beyond them runs without a graph.
            sample: hidden states as those of training, [s, b, h]. The memory stays as it is.
        """
        last = self._last
        self._graphs = GraphedForwards(self, number, sample)
        self._last = last

    def forward(self, hidden_states: Tensor, write_mask: Tensor | None = None) -> Tensor:
        """Read, write, and add the result to the residual stream; see `MemoryBlock.forward`."""
        slot = None
        if self._graphs is not None and write_mask is None:
            slot = self._graphs.free_slot(self, hidden_states)
        if slot is None:
            return super().forward(hidden_states, write_mask)
        output = slot.run(hidden_states)
        for log in slot.region.logs:
            self._record(log)
        self._last = slot.region.record
        return output

    def forward_unrecorded(self, hidden_states: Tensor) -> tuple[Tensor, list[UndoLog], ForwardRecord | None]:
        """Forward with the undo logs that are still to be recorded, and what statistics are made of."""
        logs: list[UndoLog] = []
        self._unrecorded = logs
        try:
            return super().forward(hidden_states), logs, self._last
        finally:
            self._unrecorded = None

    def _record(self, log: UndoLog) -> None:
        if self._unrecorded is None:
            super()._record(log)
        else:
            self._unrecorded.append(log)

    def _remember(self, queries: Tensor, values: Tensor, gates: Tensor | None, mask: Tensor | None) -> Tensor:
        """What the memory returns for `queries` [s, b, heads * key_dim], in [s, b, columns]; its tables move on.

        With context parallelism every rank brings its tokens, and all of them go through this rank's tables.
        """
        queries = to_dtype(self.context.gather_tokens(queries), self.sub_keys.dtype)
        gates = None if gates is None else self.context.gather_tokens(gates)
        per_sequence = queries.transpose(0, 1).unflatten(-1, (self.config.fwpkm.num_heads, -1))
        targets = self.context.tokens_to_columns(values).transpose(0, 1)
        weighed = gates is not None and self.config.fwpkm.gate_writes
        token_gates = gates.squeeze(-1).transpose(0, 1) if gates is not None and weighed else None
        if outlives_sequence(self.config.fwpkm):
            outputs = [self._call(per_sequence, targets, token_gates, mask)]
            retrieved = outputs[0].retrieved
            if outputs[0].undo_log is not None:
                self._record(outputs[0].undo_log)
            self._finish(outputs[0].state)
        else:
            self._touched.zero_()
            outputs, retrieved = self._read_apart(self._call_and_undo, per_sequence, targets, token_gates, mask)
        self._last = ForwardRecord(queries, gates, outputs, self.options.chunk_size)
        return self.context.columns_to_tokens(retrieved.transpose(0, 1))

    def _call(self, queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None) -> FastWeightOutput:
        state = self.fast_weights()
        if torch.compiler.is_compiling() and (self.config.fwpkm.reset != "never" or self._preserving):
            raise ValueError(
                f"torch.compile gives the memory of layer {self.layer_number} no undo log, which "
                f"--fwpkm-reset {self.config.fwpkm.reset} and undone steps need: leave the layer out of the compiled "
                "part (torch.compiler.disable)"
            )
        return fast_weight_memory_(
            queries, targets, gates, state, self.options, mask=mask, sharding=self._table_sharding()
        )

    def _call_and_undo(
        self, queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None
    ) -> FastWeightOutput:
        """Go through a memory that ends with these tokens: its slots count as touched, the tables are as before."""
        output = self._call(queries, targets, gates, mask)
        if output.undo_log is not None:
            self._mark_touched(output.undo_log)
            # Safe before backward, which reads the log and not the table.
            output.undo_log.undo_(self.fast_weights())
        return replace(output, undo_log=None)

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
