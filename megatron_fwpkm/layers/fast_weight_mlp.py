"""The fast-weight MLP as a Megatron module: the paper's baseline in the place of a product key memory (DESIGN 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from ..config.derived import outlives_sequence
from ..ops import FastMLPOptions, FastMLPOutput, FastMLPState, fast_weight_mlp, flush_pending_mlp
from .block_around_memory import MemoryBlock, memory_groups
from .fast_mlp_tables import FastMLPTables
from .memory_projections import LOCAL_PROJECTIONS, MemoryProjections
from .memory_statistics import MemoryStatistics, gate_and_loss, hash_bits
from .table_sharding import ContextSharding, RankSharding


class FastWeightMLPLayer(MemoryBlock, FastMLPTables):
    """Reads a fast SwiGLU for every token and trains it on every chunk, within the block of `MemoryBlock`.

    Tensor- and context-parallel ranks share its hidden width. All of them read all tokens: queries, values and gates
    are gathered, reads are one sum per chunk, and every rank goes on with its own tokens and columns.

    Attributes:
        options: numbers and choices of the memory, from the configuration; may be changed between two forwards.

    Args:
        config: transformer configuration with `fwmlp` and `init_seed`.
        layer_number: counted from 1 over the whole model.
        pg_collection: process groups; default those of megatron's parallel state.
        submodules: what its linears are built from.

    Raises:
        ValueError: the tensor- and context-parallel ranks do not divide the hidden width, or the tensor-parallel ones
            the values.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        pg_collection: ProcessGroupCollection | None = None,
        submodules: MemoryProjections = LOCAL_PROJECTIONS,
    ) -> None:
        groups, fwmlp = memory_groups(pg_collection), config.fwmlp
        sharding = RankSharding(groups.tp_cp, ContextSharding(groups.cp))
        FastMLPTables.__init__(self, config, layer_number, sharding.part("--fwmlp-hidden-size", fwmlp.hidden_size))
        self.table_sharding = sharding
        self.options = FastMLPOptions.of(fwmlp)
        self._last: tuple[Tensor, Tensor | None, list[Tensor]] | None = None
        self._build_block(config, fwmlp, fwmlp.key_dim, groups, submodules)

    @property
    def table_dtype(self) -> torch.dtype:  # type: ignore[override]
        """What the memory computes in."""
        return self.weights().down_bias.dtype

    def _remember(self, queries: Tensor, values: Tensor, gates: Tensor | None, mask: Tensor | None) -> Tensor:
        queries = self.context.gather_tokens(queries).to(self.table_dtype)
        gates = None if gates is None else self.context.gather_tokens(gates)
        targets = self.context.gather_tokens(self.sharding.gather_columns(values)).transpose(0, 1)
        weights = None
        if self.config.fwmlp.gate_writes and gates is not None:
            weights = gates.squeeze(-1).transpose(0, 1)
        per_sequence = queries.transpose(0, 1)
        if outlives_sequence(self.config.fwmlp):
            outputs = [self._call(per_sequence, targets, weights, mask, self.fast_weights())]
            reads = outputs[0].retrieved
            self._finish(outputs[0].state)
        else:  # the weights that a call moves are copies
            from_the_start = partial(self._call, state=FastMLPState(self.weights()))
            outputs, reads = self._read_apart(from_the_start, per_sequence, targets, weights, mask)
        sample = queries.detach()[(len(queries) - 1) % self.options.chunk_size :: self.options.chunk_size].clone()
        self._last = sample, None if gates is None else gates.detach(), [out.memorization_loss for out in outputs]
        return self.sharding.own_columns(self.context.own_tokens(reads.transpose(0, 1)))

    def _call(
        self, queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None, state: FastMLPState
    ) -> FastMLPOutput:
        return fast_weight_mlp(queries, targets, gates, state, self.options, mask=mask, sharding=self._used_sharding())

    def _used_sharding(self) -> RankSharding | None:
        return self.table_sharding if self.table_sharding.size > 1 else None

    def _finish(self, state: FastMLPState) -> None:
        """Keep the waiting tokens of a stream; otherwise write those whose targets are known and forget the rest."""
        if state.pending is not None and not self.streaming:
            with torch.no_grad():
                state = flush_pending_mlp(state, self.options, sharding=self._used_sharding()).state
        self._replace(state.weights)
        self.pending = state.pending if self.streaming else None

    def statistics_on_device(self) -> Tensor:
        """Figures of the last forward, [5] float64 in the order of `MemoryStatistics`; NaN where there is none."""
        assert self._last is not None, "statistics were asked for before the first forward"
        _, gates, losses = self._last
        gate_mean, loss = gate_and_loss(gates, losses, self.weights().down_bias)
        absent = torch.full_like(loss, torch.nan)
        return torch.stack([gate_mean, absent, absent, loss, absent])

    def statistics(self) -> MemoryStatistics:
        """The same for the host, which waits for the device."""
        return MemoryStatistics(*self.statistics_on_device().tolist())

    def consistency_hash(self) -> Tensor:
        """A cheap hash (int64 scalar) of what all ranks that share this memory have alike.

        These are some queries and the gates of the last forward, and the output bias, which every write moves by the
        errors of all tokens.
        """
        if self._last is None:
            return hash_bits([])
        sample, gates, _ = self._last
        return hash_bits([sample, *([] if gates is None else [gates]), self.weights().down_bias])

    @contextmanager
    def preserve_fast_weights(self, keep: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Undo bit for bit at exit whatever is written, reset or loaded inside, unless `keep` then says that it stays.

        May be nested.
        """
        last = self._last
        with super().preserve_fast_weights(keep):
            yield
        if not keep():
            self._last = last
