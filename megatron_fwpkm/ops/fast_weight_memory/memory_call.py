"""One call of the memory, whatever computes it: from what it is given to what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..chunk_pieces import Piece, call_schedule, flush_schedule
from ..precision import full_precision
from ..row_overlay import RowOverlay
from ..state import FastWeightOutput, FastWeightState
from ..stream import Stream
from ..undo_log import UndoLog
from .input_checks import check_tables, make_stream, pending_stream
from .options import MemoryOptions


class ChainResult(NamedTuple):
    """What computes a call gives back; fields as in `FastWeightOutput`, and the tables after the call (detached).

    Of a state with an overlay `values` is the base, as it was, and `overlay` holds the rows after the call.
    """

    retrieved: Tensor
    slot_indices: Tensor
    slot_weights: Tensor
    memorization_loss: Tensor
    addressing_loss: Tensor
    sub_keys: Tensor
    values: Tensor
    undo_log: UndoLog | None
    overlay: RowOverlay | None = None


@dataclass(frozen=True)
class Call:
    """What one call has to do, checked.

    Attributes:
        stream: pending tokens, then new ones.
        state: the memory before the call.
        options: the caller's.
        pieces: what is read and written when.
        waiting: position of the first token that stays pending.
    """

    stream: Stream
    state: FastWeightState
    options: MemoryOptions
    pieces: list[Piece]
    waiting: int

    @classmethod
    def of_tokens(
        cls,
        queries: Tensor,
        targets: Tensor,
        gates: Tensor | None,
        mask: Tensor | None,
        state: FastWeightState,
        options: MemoryOptions,
        processes: int = 1,
    ) -> Call:
        """A call that reads new tokens, on tables that are spread over `processes`.

        Raises:
            ValueError: the tokens do not fit the tables, the pending tokens or the boundary.
        """
        check_tables(state, options, processes)
        stream = make_stream(queries, targets, gates, mask, state, options.boundary)
        return cls(stream, state, options, *call_schedule(options, stream.num_pending, queries.shape[1]))

    @classmethod
    def of_pending(cls, state: FastWeightState, options: MemoryOptions, processes: int = 1) -> Call:
        """A call without new tokens that writes the pending ones whose targets are known.

        Raises:
            ValueError: the tables do not fit each other or the options.
        """
        check_tables(state, options, processes)
        return cls(pending_stream(state), state, options, *flush_schedule(state.num_pending, options.lookahead))

    def run(self, compute: Callable[[Call, bool], ChainResult], *, in_place: bool) -> FastWeightOutput:
        """Do it, in full float32.

        Args:
            compute: one implementation: (call, in place) to its results.
            in_place: the tables of the state are written; otherwise they stay as they are.
        """
        if not self.pieces:
            return self._nothing()
        with full_precision(self.state.values.device):
            result = compute(self, in_place)
        tables = (self.state.sub_keys, self.state.values) if in_place else (result.sub_keys, result.values)
        pending, rounding = self.stream.tail(self.waiting), self._count_writes(in_place)
        state = FastWeightState(*tables, pending, rounding, result.overlay)
        return FastWeightOutput(*result[:5], state, result.undo_log if in_place else None)

    def _count_writes(self, in_place: bool) -> Tensor | None:
        """Add the writes of the call, on the device: a CUDA graph that is replayed goes on counting."""
        rounding = self.state.rounding
        if rounding is None:
            return None
        rounding = rounding if in_place else rounding.clone()
        if self.options.inner_lr:
            rounding[1] += sum(piece.num_written > 0 for piece in self.pieces)
        return rounding

    def _nothing(self) -> FastWeightOutput:
        """The output of a call that neither reads nor writes."""
        batch, _, heads, _ = self.stream.queries.shape
        empty = self.stream.queries.new_zeros(batch, 0, heads, self.options.topk)
        reads = self.stream.targets.new_zeros(batch, 0, self.stream.targets.shape[2])
        return FastWeightOutput(reads, empty.long(), empty, reads.new_zeros(batch, 0), reads.new_zeros(0), self.state)
