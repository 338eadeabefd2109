"""What the memories of a cache read and write while a model reads or generates, taken from outside of the model.

Tokens are numbered in the order in which they arrive, whatever the mode of the memory. A write is told when it happens:
at the end of its chunk, or when waiting tokens are flushed. A token that still waits has written nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...hf.cache import FwPKMCache
from ...hf.memory import PRODUCT_KEYS, LayerMemory, MemoryFunctions
from ...ops.chunk_pieces import Piece
from ...ops.fast_weight_memory.memory_call import Call
from ...ops.fast_weight_memory.options import MemoryOptions
from ...ops.fast_weight_memory.plain import Reading, read_state, run_plain
from ...ops.state import FastWeightOutput, FastWeightState


class SlotReads(NamedTuple):
    """What T tokens of one sequence read in one layer, with H heads and k slots per head."""

    slots: Tensor
    """int64 [T, H, k], on the CPU."""
    weights: Tensor
    """float32 [T, H, k], which add up to 1 over all heads and slots of a token."""
    gates: Tensor
    """float32 [T], how much of the read reaches the output; 1 in a model without a gate."""

    def cut(self, start: int, stop: int) -> SlotReads:
        """The tokens [start, stop)."""
        return SlotReads(*(field[start:stop] for field in self))


class SlotWrites(NamedTuple):
    """What one write of W tokens changed in one layer."""

    tokens: Tensor
    """int64 [W], numbers of the tokens; -1 for those that waited before the watch began."""
    slots: Tensor
    """int64 [W, H, k], on the CPU."""
    steps: Tensor
    """float32 [W, H, k], how far the slot moved from what was read towards the token's target: 1 is all the way."""


OnRead = Callable[[int, int, SlotReads], None]
"""Takes the layer's index from 0, the number of the first token, and what was read."""
OnWrite = Callable[[int, SlotWrites], None]
"""Takes the layer's index from 0 and what was written."""
Collected = dict[int, list[SlotReads]]
"""By layer index from 0, the reads of every call."""


@contextmanager
def watch_memory(
    cache: FwPKMCache, first: int = 0, on_read: OnRead | None = None, on_write: OnWrite | None = None
) -> Iterator[None]:
    """Tell what the calls with a cache of one sequence read and write in its product key memories.

    Within the context the memories are computed by `plain`, which gives the numbers of every implementation but for
    rounding. Memories of other kinds have no slots and are left out.

    Args:
        cache: of one sequence.
        first: the number of the next token that arrives.
        on_read: is called with the reads of tokens when they arrive, before a write that they complete.
        on_write: is called with every write.

    Raises:
        ValueError: the cache has several sequences.
    """
    if cache.batch_size != 1:
        raise ValueError(f"slots are traced for one sequence at a time, but the cache has {cache.batch_size}")
    with ExitStack() as stack:
        for index, memories in cache.memory.items():
            if memories.owners[0].functions == PRODUCT_KEYS:
                watch = _LayerWatch(index, first, on_read, on_write)
                stack.enter_context(watch.on(memories.owners[0], cache.model.layers[index].memory))
        yield


@contextmanager
def collect_reads(cache: FwPKMCache, first: int = 0, on_write: OnWrite | None = None) -> Iterator[Collected]:
    """Collect what calls read, within the context; arguments and errors as in `watch_memory`."""
    found: Collected = {
        index: [] for index, memories in cache.memory.items() if memories.owners[0].functions == PRODUCT_KEYS
    }
    with watch_memory(cache, first, lambda layer, number, reads: found[layer].append(reads), on_write):
        yield found


def joined(found: Collected) -> dict[int, SlotReads]:
    """The reads of all calls in their order, by layer; layers that were not read are left out."""
    return {
        index: SlotReads(*(torch.cat(parts) for parts in zip(*calls, strict=True)))
        for index, calls in found.items()
        if calls
    }


class _LayerWatch:
    """Stands between the memory of one layer and what computes it."""

    def __init__(self, layer: int, first: int, on_read: OnRead | None, on_write: OnWrite | None) -> None:
        self.layer, self.next, self.on_read, self.on_write = layer, first, on_read, on_write
        self.waiting = torch.empty(0, dtype=torch.int64)
        """Numbers of the tokens that wait to be written."""
        self.gates: Tensor | None = None
        """Of the call that is under way."""

    @contextmanager
    def on(self, owner: LayerMemory, block: Any) -> Iterator[None]:
        """Watch a memory and the block around it."""
        self.waiting = torch.full((owner.state.num_pending,), -1)
        owner.functions = MemoryFunctions(self._read_and_write, self._write_pending, self._read_only)
        gate: nn.Module | None = block.gate_proj
        hook = None if gate is None else gate.register_forward_hook(self._take_gates)
        try:
            yield
        finally:
            owner.functions = PRODUCT_KEYS
            if hook is not None:
                hook.remove()

    def _take_gates(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self.gates = output.detach().float().sigmoid()[0, :, 0].cpu()

    def _read_and_write(
        self, queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None, state: FastWeightState,
        options: MemoryOptions, *, in_place: bool,
    ) -> FastWeightOutput:  # fmt: skip
        call = Call.of_tokens(queries, targets, gates, mask, state, options)
        return self._run(call, queries.shape[1], in_place)

    def _write_pending(self, state: FastWeightState, options: MemoryOptions, *, in_place: bool) -> FastWeightOutput:
        return self._run(Call.of_pending(state, options), 0, in_place)

    def _run(self, call: Call, arriving: int, in_place: bool) -> FastWeightOutput:
        earlier = call.stream.num_tokens - arriving
        assert earlier <= len(self.waiting), "tokens wait that never arrived"
        waiting = self.waiting[len(self.waiting) - earlier :]  # a text may have ended: then none of it waits
        numbers = torch.cat([waiting, torch.arange(self.next, self.next + arriving)])
        weights = call.stream.write_weights()[0]

        def observe(piece: Piece, reading: Reading) -> None:
            """Tell the reads of the tokens that arrive, then the write."""
            if self.on_read is not None and arriving and piece.emit_start < piece.stop:
                slots, read = (_by_head(x, call)[piece.emit_start - piece.start :] for x in (reading[1], reading[3]))
                self._tell(int(numbers[piece.emit_start]), slots, read, piece.emit_start - earlier)
            if self.on_write is not None and piece.num_written and call.options.inner_lr:
                steps = _steps(piece, reading, weights, call.options)
                written = slice(0, piece.num_written)
                self.on_write(self.layer, SlotWrites(
                    numbers[piece.start : piece.write_stop], _by_head(reading.slot_indices, call)[written],
                    _by_head(steps, call).float()[written],
                ))  # fmt: skip

        output = call.run(partial(run_plain, can_be_undone=False, observe=observe), in_place=in_place)
        self.waiting, self.next = numbers[call.waiting :], self.next + arriving
        return output

    def _read_only(self, queries: Tensor, targets: Tensor, tables: Any, options: Any) -> Tensor:
        reading = read_state(queries, replace(tables, pending=None), options)
        if self.on_read is not None:
            shape = queries.shape[1], queries.shape[2], -1
            self._tell(self.next, reading.slot_indices.view(shape).cpu(), reading.slot_weights.view(shape).cpu(), 0)
        self.next += queries.shape[1]
        return PRODUCT_KEYS.read_only(queries, targets, tables, options)

    def _tell(self, first: int, slots: Tensor, weights: Tensor, place: int) -> None:
        """Tell the reads of tokens that stand at `place` of the call."""
        gates = torch.ones(len(slots)) if self.gates is None else self.gates[place : place + len(slots)]
        assert self.on_read is not None
        self.on_read(self.layer, first, SlotReads(slots, weights.detach().float(), gates))


def _by_head(x: Tensor, call: Call) -> Tensor:
    """[M, H * k] as [M, H, k] on the CPU."""
    return x.detach().unflatten(1, (call.stream.queries.shape[2], -1)).cpu()


def _steps(piece: Piece, reading: Reading, weights: Tensor, options: MemoryOptions) -> Tensor:
    """How far every written token moves each of its slots, [M, H * k] with zeros for those not written (DESIGN 2.2)."""
    counted = reading.slot_indices[piece.count_start - piece.start : piece.count_stop - piece.start]
    slots, counts = counted.unique(return_counts=True)
    steps = torch.zeros_like(reading.slot_weights)
    written = reading.slot_indices[: piece.num_written]
    places = torch.searchsorted(slots, written.contiguous()).clamp(max=len(slots) - 1)
    readers = torch.where(slots[places] == written, counts[places], 1)
    scale = options.inner_lr * written.shape[1] * piece.num_samples / piece.num_written
    gates = weights[piece.start : piece.write_stop].unsqueeze(1)
    steps[: piece.num_written] = reading.slot_weights[: piece.num_written] * gates * scale / readers
    return steps.detach()
