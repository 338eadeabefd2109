"""CUDA graphs of a memory layer's forward and backward, one pair for each micro-batch that may be in flight.

Under a pipeline several micro-batches run forward before the first runs backward, so each needs tensors of its own for
what backward reads. A *slot* has them: torch captures the layer's forward and backward into two graphs with a pool of
memory of their own, which no other slot uses. A forward takes a slot that is free and its backward frees it; where none
is free, the layer runs without a graph, to the same result. The fast weights are one state at fixed addresses that all
graphs write in place, in the order in which they are replayed. Gradients of weights and of the hidden states are
memory of the slot, too, which its next backward overwrites. They must be used before: weights' gradients by Megatron's
DDP, which takes them at once, and those of hidden states by the layers below or by a pipeline stage that sends them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..ops import UndoLog
from .memory_statistics import ForwardRecord

if TYPE_CHECKING:
    from .fast_weight_memory import FastWeightMemoryLayer


class _Region(nn.Module):
    """What is captured: the layer, without what it does for the host's own books, which a replay does not repeat.

    Attributes:
        logs: undo logs of the forward that was captured last; a replay writes into their tensors.
        record: what statistics are made of, likewise.
    """

    logs: list[UndoLog]
    record: ForwardRecord | None

    def __init__(self, layer: FastWeightMemoryLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The layer's output; the fast weights move on."""
        output, self.logs, self.record = self.layer.forward_unrecorded(hidden_states)
        return output


class _Slot:
    """Graphs and memory of one micro-batch in flight."""

    def __init__(self, layer: FastWeightMemoryLayer, sample: Tensor) -> None:
        region = _Region(layer)
        self.replay: Any = torch.cuda.make_graphed_callables(region, (sample.clone().requires_grad_(),))
        self.region = region
        self._waiting: weakref.ref[Any] | None = None

    @property
    def is_free(self) -> bool:
        """Whether no forward waits for its backward; one whose graph of autograd is gone does not."""
        return self._waiting is None or self._waiting() is None

    def run(self, hidden_states: Tensor) -> Tensor:
        """Replay forward, and take the slot until backward has run."""
        output: Tensor = self.replay(hidden_states)
        node = output.grad_fn
        assert node is not None, "a graph is for training"
        self._waiting = weakref.ref(node)
        node.register_hook(self._finish)
        return output

    def _finish(self, *_: Any) -> None:
        self._waiting = None


class GraphedForwards:
    """The slots of one memory layer.

    Args:
        layer: it is captured as it is now; its options must stay.
        number: micro-batches that may be in flight.
        sample: hidden states as those of training, [s, b, h].
    """

    def __init__(self, layer: FastWeightMemoryLayer, number: int, sample: Tensor) -> None:
        self._options, self._shape, self._dtype = layer.options, sample.shape, sample.dtype
        with _state_put_back(layer):
            self._slots = [_Slot(layer, sample) for _ in range(number)]

    def free_slot(self, layer: FastWeightMemoryLayer, hidden_states: Tensor) -> _Slot | None:
        """A slot for this forward, or None if it has to run without a graph."""
        if not layer.training or not torch.is_grad_enabled() or layer.streaming or layer.pending is not None:
            return None
        if layer.options != self._options:
            return None
        if hidden_states.shape != self._shape or hidden_states.dtype != self._dtype:
            return None
        return next((slot for slot in self._slots if slot.is_free), None)


@contextmanager
def _state_put_back(layer: FastWeightMemoryLayer) -> Iterator[None]:
    """Undo what warming up and capturing write."""
    tables = [table for table in (layer.sub_keys, layer.values, layer.rounding) if table is not None]
    copies = [table.clone() for table in tables]
    try:
        yield
    finally:
        for table, before in zip(tables, copies, strict=True):
            table.copy_(before)
