"""What a text leaves behind while it is read: the attention's window of keys, and the memory it has written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from .configuration_fwpkm import FwPKMHFConfig
from .memory import MemoryStream


class WindowLayer(DynamicSlidingWindowLayer):
    """Keys and values of the last ``sliding_window - 1`` tokens: what the next token can still see besides itself."""

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, head_dim]; return the kept and the new ones, and keep the last window.

        The window is copied: a slice would keep the tensors of a long call alive.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        keys, values = torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)
        first = max(0, keys.shape[-2] - self.sliding_window + 1)
        self.keys, self.values = keys[..., first:, :].clone(), values[..., first:, :].clone()
        return keys, values


class FwPKMCache(Cache):
    """Past of the model along one text, or several texts of equal length that share one memory.

    Made by ``model.new_cache()``. Beside the usual keys and values of attention it owns the fast weights: they start
    from the model's initial memory, are copied at the first write, and belong to this cache alone.
    """

    def __init__(self, config: FwPKMHFConfig, memory: Mapping[int, MemoryStream]):
        super().__init__(layers=_attention_layers(config))
        self.config = config
        self.memory = dict(memory)
        """Memory stream of every layer that has one, by layer index from 0."""

    @property
    def is_croppable(self) -> bool:
        """Never: a write cannot be taken back. Keep a ``clone()`` instead."""
        return False

    def flush_memory(self) -> None:
        """Write the tokens that wait for their chunk to fill, so that the next token can already recall them.

        The last ``lookahead`` tokens keep waiting for their targets.
        """
        with torch.no_grad():
            for stream in self.memory.values():
                stream.flush()

    def end_text(self) -> None:
        """End the text here and keep its memory: flush, then forget the attention window and start positions anew.

        What follows is another text (a question after a document, the next document) as far as attention can see.
        """
        with torch.no_grad():
            for stream in self.memory.values():
                stream.end_text()
        self.layers = _attention_layers(self.config)

    def reset_memory(self) -> None:
        """Put the initial memory back and forget the waiting tokens; the attention window stays."""
        for stream in self.memory.values():
            stream.reset()

    def reset(self) -> None:
        """Forget everything: memory, waiting tokens and attention window."""
        self.reset_memory()
        self.layers = _attention_layers(self.config)

    def clone(self) -> FwPKMCache:
        """An independent copy, to go on from here in several ways. Tables are copied at the next write of either."""
        twin = FwPKMCache(self.config, {index: stream.clone() for index, stream in self.memory.items()})
        for theirs, ours in zip(twin.layers, self.layers, strict=True):
            if ours.is_initialized:
                theirs.lazy_initialization(ours.keys, ours.values)
                theirs.keys, theirs.values = ours.keys.clone(), ours.values.clone()
                if isinstance(ours, WindowLayer):
                    theirs.cumulative_length = ours.cumulative_length
        return twin

    def crop(self, *args: object, **kwargs: object) -> None:
        """Refused.

        Raises:
            ValueError: always; assisted decoding needs it and cannot work with a memory that is written.
        """
        raise ValueError(
            "a memory that has been written cannot be cropped: take cache.clone() before the tokens you may want to "
            "take back, and generate without an assistant model"
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the sequences; their common memory stays."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence; the copies share the memory."""
        super().batch_repeat_interleave(repeats)
        for stream in self.memory.values():
            if stream.pending is not None:
                batch = stream.pending.queries.shape[0]
                stream.select(torch.arange(batch, device=stream.values.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the sequences; their common memory stays."""
        super().batch_select_indices(indices)
        self._select(indices)

    def _select(self, indices: Tensor) -> None:
        for stream in self.memory.values():
            stream.select(indices.to(stream.values.device))


def _attention_layers(config: FwPKMHFConfig) -> list[DynamicLayer]:
    return [DynamicLayer() if window is None else WindowLayer(window) for window in config.attention_windows]
