"""What a text leaves behind while it is read: what each layer's token mixer keeps, and the memory it has written."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .configuration_fwpkm import FwPKMHFConfig
from .kind_modules import new_cache_layers
from .memory import LayerMemory
from .rows import ReadText


class FwPKMCache(Cache):
    """Past of the model along one text, or several texts of equal length that share one memory.

    Made by `model.new_cache()`. Beside the usual keys and values of attention it owns the fast weights: they start
    from the model's initial memory, are copied at the first write, and belong to this cache alone.
    """

    def __init__(self, config: FwPKMHFConfig, memory: Mapping[int, LayerMemory]):
        super().__init__(layers=new_cache_layers(config))
        self.config = config
        self.memory = dict(memory)
        """The fast weights of every layer that has them, by layer index from 0."""
        self.text = ReadText()
        """What has been read of the text that goes on."""
        self.shift: Tensor | None = None
        """[B] of the call that is under way: entries at the end of every row that are no tokens; None for none."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of the call to a layer; returns all that it attends to."""
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, shift=self.shift)
        return found

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Places of the text so far, padding included, as Transformers counts them; equal in all layers."""
        return self.text.places

    @property
    def is_croppable(self) -> bool:
        """Never: a write cannot be taken back. Keep a `clone()` instead."""
        return False

    def flush_memory(self) -> None:
        """Write the tokens that wait for their chunk to fill, so that the next token can already recall them.

        The last `lookahead` tokens keep waiting for their targets.
        """
        with torch.no_grad():
            for memory in self.memory.values():
                memory.flush()

    def end_text(self) -> None:
        """End the text here and keep its memory: flush, then forget the attention window and start positions anew.

        What follows is another text (a question after a document, the next document) as far as attention can see.
        """
        with torch.no_grad():
            for memory in self.memory.values():
                memory.end_text()
        self._begin_text()

    def reset_memory(self) -> None:
        """Put the initial memory back and forget the waiting tokens; the attention window stays."""
        for memory in self.memory.values():
            memory.reset()

    def reset(self) -> None:
        """Forget everything: memory, waiting tokens and attention window."""
        self.reset_memory()
        self._begin_text()

    def _begin_text(self) -> None:
        self.layers = new_cache_layers(self.config)
        self.text = ReadText()

    def clone(self) -> FwPKMCache:
        """An independent copy, to go on from here in several ways. Tables are copied at the next write of either."""
        twin = FwPKMCache(self.config, {index: memory.clone() for index, memory in self.memory.items()})
        twin.layers = [_clone(layer) for layer in self.layers]
        twin.text = self.text
        return twin

    def crop(self, *args: object, **kwargs: object) -> None:
        """Refused.

        Raises:
            ValueError: always; assisted decoding needs it, and does not work with a memory that is written.
        """
        raise ValueError(
            "a memory that has been written cannot be cropped; call cache.clone() before the tokens that may have to "
            "be undone, and generate without an assistant model"
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the sequences; their common memory stays."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence; the copies share the memory."""
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(len(self.text.lengths)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the sequences; their common memory stays."""
        super().batch_select_indices(indices)
        self._select(indices)

    def _select(self, indices: Tensor) -> None:
        self.text = self.text.select(indices.tolist())
        for memory in self.memory.values():
            memory.select(indices)


def _clone(layer: CacheLayerMixin) -> CacheLayerMixin:
    twin = copy(layer)
    vars(twin).update({name: _clone_value(value) for name, value in vars(layer).items()})
    return twin


def _clone_value(value: Any) -> Any:
    """A tensor, or a dictionary of some, which Transformers' linear attention keeps; anything else is itself."""
    if isinstance(value, dict):
        return {name: _clone_value(entry) for name, entry in value.items()}
    return value.clone() if isinstance(value, Tensor) else value
