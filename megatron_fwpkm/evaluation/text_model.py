"""One interface to every causal language model that is evaluated: read text through a cache, with or without a memory.

A cache holds the state of the text so far: keys and values of attention and, if there is one, the fast-weight memory.
A model of this project with memory layers has modes: `on` writes the memory, `frozen` only reads it, `off` reads
the initial one. Any other model, including the plain baseline, has no memory.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

MemoryMode = Literal["on", "frozen", "off"]

SEGMENT = 4096
"""Tokens of a call where only the last logits count: hidden states of a whole text would outgrow its memory."""


class TextModel:
    """Any causal language model of Transformers.

    Attributes: `model` (in evaluation mode), `has_memory`, `device`.
    """

    has_memory = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        known = inspect.signature(getattr(model, "forward", model)).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"  # from Transformers 5.24, and before
        self._can_keep_last = "logits_to_keep" in known

    def call_size(self, segment: int) -> int:
        """Tokens of a call: `segment`, or all that there are where the memory depends on how a text is cut."""
        return 2**62 if getattr(self.model.config, "cuts_matter", False) else segment

    def finish(self) -> None:
        """Wait until a GPU has done what it was told, so that a clock tells how long that took."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def new_cache(self, chunk_size: int | None = None) -> Any:
        """The cache of an empty text, with the initial memory, which is written after every `chunk_size` tokens
        instead of the model's own number if one is given; without a memory that makes no difference.
        """
        own = getattr(self.model, "new_cache", None)  # of our models
        return DynamicCache(config=self.model.config) if own is None else own()

    def clone(self, cache: Any) -> Any:
        """A cache that can be read on with, while `cache` stays as it is."""
        return copy.deepcopy(cache)

    def write_waiting(self, cache: Any) -> None:
        """Write tokens that still wait for their chunk into the memory; does nothing without one."""

    def next_text(self, cache: Any) -> Any:
        """The cache for a text that follows: attention begins anew, the memory is kept; `cache` is used up."""
        return self.new_cache()

    def read(
        self, tokens: np.ndarray | Sequence[int], cache: Any, mode: MemoryMode = "on", *, last_only: bool = True
    ) -> torch.Tensor:
        """Read on in `cache`.

        Args:
            tokens: [N] ids that follow what the cache holds.
            cache: of this model; changed.
            mode: what the memory does; `on` where there is none.
            last_only: only the logits after the last token.

        Returns:
            Logits [vocab], or [N, vocab].
        """
        logits = self.read_rows(np.asarray(tokens, dtype=np.int64)[None], cache, mode, last_only=last_only)[0]
        return logits[-1] if last_only else logits

    def read_whole(self, tokens: np.ndarray | Sequence[int], mode: MemoryMode = "on") -> torch.Tensor:
        """Read a text in one call without a cache, as training reads a sequence.

        Reading in a cache differs from it where a chunk of the memory ends: there a token is not waited for.

        Args:
            tokens: [N].
            mode: what the memory does, which is the initial one at first.

        Returns:
            Logits [N, vocab].
        """
        row = torch.as_tensor(np.asarray(tokens, dtype=np.int64), device=self.device).unsqueeze(0)
        logits: torch.Tensor = self.model(input_ids=row, use_cache=False).logits[0]
        return logits

    def read_rows(
        self, rows: np.ndarray, cache: Any, mode: MemoryMode = "on", *, last_only: bool = True
    ) -> torch.Tensor:
        """Read on in the texts of `cache`, all at once.

        Args:
            rows: [B, N] ids that follow what the cache holds.
            cache: of this model, with B texts; changed.
            mode: as in `read`.
            last_only: the model may leave out the logits of all tokens but the last.

        Returns:
            Logits [B, N or 1, vocab].
        """
        assert mode == "on" or self.has_memory, "a model without memory has no mode to choose"
        ids = torch.as_tensor(np.asarray(rows, dtype=np.int64), device=self.device)
        arguments = {self._cache_name: cache, **({"logits_to_keep": 1} if last_only and self._can_keep_last else {})}
        logits: torch.Tensor = self.model(input_ids=ids, use_cache=True, **arguments).logits
        return logits

    def parts(self, cache: Any) -> list[Any]:
        """A cache for every text of `cache`, to read on with; a model without memory has one text in a cache."""
        return [cache]

    def tokens_read(self, cache: Any) -> int | None:
        """Tokens of the text so far, as the cache counts them; None where it does not."""
        count = getattr(cache, "get_seq_length", None)
        return None if count is None else int(count())

    def attention_reach(self) -> int | None:
        """How many tokens attention alone can look back, through all layers; None for the whole text."""
        reach = 0
        for layer in self.new_cache().layers:
            window: int | None = getattr(layer, "sliding_window", None)
            if window is None:
                return None
            reach += window - 1
        return reach


class MemoryTextModel(TextModel):
    """A model of our own with memory layers, whose `memory_mode` is set at every call."""

    has_memory = True

    def new_cache(self, chunk_size: int | None = None) -> Any:
        """A cache whose memories have this chunk size."""
        cache = super().new_cache()
        if chunk_size is not None:
            for owner in (owner for memory in cache.memory.values() for owner in memory.owners):
                owner.options = replace(owner.options, chunk_size=chunk_size)
        return cache

    def clone(self, cache: Any) -> Any:
        """A cache with a memory of its own."""
        return cache.clone()

    def write_waiting(self, cache: Any) -> None:
        """Write what still waits for its chunk."""
        cache.flush_memory()

    def next_text(self, cache: Any) -> Any:
        """The same cache, with its memory, at the beginning of a text."""
        cache.end_text()
        return cache

    def read_rows(
        self, rows: np.ndarray, cache: Any, mode: MemoryMode = "on", *, last_only: bool = True
    ) -> torch.Tensor:
        """Read on in `cache` while the memory is in this mode."""
        self.model.memory_mode = mode
        if not last_only or rows.shape[1] <= SEGMENT or self.model.config.cuts_matter:
            return super().read_rows(rows, cache, mode, last_only=last_only)
        for start in range(0, rows.shape[1], SEGMENT):
            logits = super().read_rows(rows[:, start : start + SEGMENT], cache, mode)
        return logits

    def read_whole(self, tokens: np.ndarray | Sequence[int], mode: MemoryMode = "on") -> torch.Tensor:
        """Read a text as training does, while the memory is in this mode."""
        self.model.memory_mode = mode
        return super().read_whole(tokens, mode)

    def parts(self, cache: Any) -> list[Any]:
        """The texts of a copy of `cache`, each with a memory of its own; `cache` stays as it is."""
        found: list[Any] = cache.clone().split()
        return found


def text_model(model: Any) -> TextModel:
    """The interface to a loaded model, with a memory where its configuration names memory layers."""
    return (MemoryTextModel if getattr(model.config, "memory_layers", None) else TextModel)(model)
