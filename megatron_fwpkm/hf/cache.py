"""What texts leave behind while they are read: what the token mixers keep, and the memories that were written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .cache_tensors import cache_tensors, fill_cache, layer_tensors, load_cache, move_cache, save_cache
from .cropping import Past, Unread
from .kind_modules import new_cache_layers
from .layer_memories import LayerMemories
from .memory import LayerMemory
from .rows import ReadText


class FwPKMCache(Cache):
    """Past of the model along one text or several, and the memories that they have written.

    Made by `model.new_cache()`. Beside the usual keys and values of attention it owns the fast weights: they start
    from the model's initial memory, of which it keeps only the rows that it changes.

    Attributes:
        memory: the fast weights of every layer that has them, by layer index from 0.
        text: what has been read of the text that goes on.
        shift: [B] of the call that is under way: entries at the end of every row that are no tokens; None for none.
        unread: tokens of the text that the next call reads first, after `crop()`.

    Args:
        model: the decoder that the cache is for, with its configuration.
        memory: the fresh memory of one owner, for every layer that has one.
        owner: "per-sequence" or "shared".
        batch_size: sequences; default as many as the first call has.
    """

    def __init__(
        self,
        model: Any,
        memory: Mapping[int, LayerMemory],
        owner: str = "per-sequence",
        batch_size: int | None = None,
    ):
        self.layers: list[CacheLayerMixin]
        super().__init__(layers=new_cache_layers(model.config))
        self.model, self.owner = model, owner
        shared = owner == "shared"
        self.memory = {
            index: LayerMemories(first, shared=shared, sequences=batch_size or 1) for index, first in memory.items()
        }
        self.text = ReadText()
        self.shift: Tensor | None = None
        self.unread: Unread | None = None
        self.past: Past | None = None

    @property
    def batch_size(self) -> int:
        """Sequences: those of the text, or else those that have a memory of their own."""
        if self.text.lengths:
            return len(self.text.lengths)
        return max((len(memory.owners) for memory in self.memory.values()), default=1)

    @property
    def nbytes(self) -> int:
        """Bytes of what the cache holds beside the model's own tables: rows, waiting tokens and attention."""
        held = sum(memory.nbytes for memory in self.memory.values())
        return held + sum(tensor.nbytes for layer in self.layers for tensor in layer_tensors(layer).values())

    def expect(self, sequences: int) -> None:
        """Make ready for a call of so many sequences that writes; raises ValueError where others were read."""
        for memory in self.memory.values():
            memory.expect(sequences)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of the call to a layer; returns all that it attends to."""
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, shift=self.shift)
        return found

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Places of the text so far, padding included, as Transformers counts them; equal in all layers."""
        return self.text.places + (0 if self.unread is None else self.unread.embeddings.shape[1])

    @property
    def is_croppable(self) -> bool:
        """Calls can be taken back, since `activate_past_recording()`."""
        return self.past is not None

    def activate_past_recording(self) -> None:
        """Keep from now on what `crop()` needs; assisted decoding does this."""
        self.past = Past() if self.past is None else self.past

    def deactivate_past_recording(self) -> None:
        """Keep it no longer."""
        self.past = None

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens of the text, memory and all; what of their call stays is read with the next one.

        Args:
            tokens_to_remove: as a negative number, as in Transformers from 5.24 on; a positive one is the length that
                stays, as before.

        Raises:
            ValueError: nothing was kept of that time.
        """
        length = self.get_seq_length()
        target = length + tokens_to_remove if tokens_to_remove <= 0 else min(length, tokens_to_remove)
        if self.unread is not None and target >= self.text.places:
            kept = target - self.text.places
            ids = None if self.unread.ids is None else self.unread.ids[:, :kept]
            self.unread = Unread(self.unread.embeddings[:, :kept], ids) if kept else None
        elif target == length:
            if self.past is not None:
                self.past.forget()
        else:
            self._go_back(target)

    def _go_back(self, target: int) -> None:
        found = None if self.past is None else self.past.go_back(target)
        if found is None:
            raise ValueError(
                f"this cache cannot be cropped to {target} tokens: a memory that has been written has no way back. "
                "Call cache.activate_past_recording() before the tokens that may have to be removed, or keep a "
                "cache.clone()"
            )
        before, self.unread = found
        self.layers, self.memory, self.text = before.layers, before.memory, before.text

    def flush_memory(self) -> None:
        """Write the tokens that wait for their chunk to fill, so that the next token can already recall them.

        The last `lookahead` tokens keep waiting for their targets.
        """
        self._check_read()
        with torch.no_grad():
            for memory in self.memory.values():
                memory.flush()

    def end_text(self) -> None:
        """End the text here and keep its memory: flush, then forget the attention window and start positions anew.

        What follows is another text (a question after a document, the next document) as far as attention can see.
        """
        self._check_read()
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
        self.layers = new_cache_layers(self.model.config)
        self.text, self.unread = ReadText(), None
        if self.past is not None:
            self.past.forget()

    def _check_read(self) -> None:
        if self.unread is not None:
            raise ValueError(
                f"{self.unread.embeddings.shape[1]} tokens that crop() left of a call have not been read again: pass "
                "the tokens that follow them first"
            )

    def clone(self) -> FwPKMCache:
        """An independent copy, to go on from here in several ways. Written rows are copied when either writes."""
        twin = FwPKMCache(self.model, {}, self.owner)
        twin.memory = {index: memory.clone() for index, memory in self.memory.items()}
        twin.layers = [_clone(layer) for layer in self.layers]
        twin.text, twin.unread = self.text, self.unread
        return twin

    def fork(self, number: int) -> FwPKMCache:
        """A cache with `number` sequences for each of this one, all with memories of their own that go on from it.

        They share what they have read until they write; this cache stays as it is.

        Raises:
            ValueError: `number` is not positive, or this cache's memory is shared.
        """
        if number < 1:
            raise ValueError(f"fork({number}): the number of copies must be at least 1")
        if self.owner == "shared":
            raise ValueError(
                "a shared memory belongs to all sequences of a batch and cannot be forked for each; make the cache "
                "with model.new_cache(memory='per-sequence'), or use clone() for an independent copy"
            )
        twin = self.clone()
        twin.batch_repeat_interleave(number)
        return twin

    @classmethod
    def join(cls, caches: Sequence[FwPKMCache]) -> FwPKMCache:
        """One cache with the sequences of several, to read and generate for all at once; their memories are not copied.

        What is written belongs to the joined cache: `split()` gives every sequence back, and the caches given here
        should not be used any more.

        Raises:
            ValueError: none is given, they are of different models, a memory is shared, or a text goes on (end it with
                `end_text()`).
        """
        if not caches:
            raise ValueError("join() requires at least one cache")
        if any(cache.model is not caches[0].model for cache in caches):
            raise ValueError("caches of different models cannot be joined; make all with new_cache() of one model")
        for cache in caches:
            if cache.owner == "shared" or cache.text.places:
                why = "its memory is shared" if cache.owner == "shared" else "it has a text; call end_text() first"
                raise ValueError(f"a cache cannot be joined with others: {why}")
        first = caches[0]
        twin = cls(first.model, {}, first.owner)
        twin.memory = {
            index: memory.joined([cache.memory[index] for cache in caches[1:]])
            for index, memory in first.memory.items()
        }
        return twin

    def split(self) -> list[FwPKMCache]:
        """A cache for every sequence, with its memory and its text; this one should not be used any more.

        Raises:
            ValueError: the memory is shared.
        """
        if self.owner == "shared":
            raise ValueError("a shared memory belongs to all sequences of a batch and cannot be split")
        parts = []
        for row in range(self.batch_size):
            part = FwPKMCache(self.model, {}, self.owner)
            part.memory = {index: memory.only(row) for index, memory in self.memory.items()}
            part.layers, part.text = [_clone(layer) for layer in self.layers], self.text
            if self.text.lengths:
                Cache.batch_select_indices(part, torch.tensor([row]))
                part.text = self.text.select([row])
            parts.append(part)
        return parts

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the sequences, and with them the memories that are theirs."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence; the copies share a memory only where all sequences do."""
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(self.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the sequences, and the memories that are theirs."""
        super().batch_select_indices(indices)
        self._select(indices)

    def _select(self, indices: Tensor) -> None:
        self._check_read()
        before = len(self.text.lengths)
        self.text = self.text.select(indices.tolist())
        for memory in self.memory.values():
            memory.select(indices, before)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the cache holds, by name: touched rows, moved sub-keys, waiting tokens, attention, text.

        Raises:
            ValueError: tokens that `crop()` has left are unread.
        """
        self._check_read()
        return cache_tensors(self)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put what `state_dict()` has given in the place of what the cache holds.

        Raises:
            ValueError: it is not what a cache of this model holds.
        """
        fill_cache(self, tensors)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the cache as one safetensors file into a folder, which is made; `from_pretrained` reads it."""
        save_cache(self, save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_directory: str | os.PathLike[str], model: Any) -> FwPKMCache:
        """Read what `save_pretrained` has written, for the model that has written it.

        Raises:
            ValueError: no such file, a damaged one, or that of another model.
        """
        return load_cache(pretrained_directory, model)

    def to(self, device: torch.device | str) -> FwPKMCache:
        """Move the cache to a device, in place; the base tables there are the model's if it is there, else copies."""
        move_cache(self, torch.device(device))
        return self


def _clone(layer: CacheLayerMixin) -> CacheLayerMixin:
    twin = copy(layer)
    vars(twin).update({name: _clone_value(value) for name, value in vars(layer).items()})
    return twin


def _clone_value(value: Any) -> Any:
    """A tensor, or a dictionary of some, which Transformers' linear attention keeps; anything else is itself."""
    if isinstance(value, dict):
        return {name: _clone_value(entry) for name, entry in value.items()}
    return value.clone() if isinstance(value, Tensor) else value
