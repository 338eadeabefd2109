"""Generation through a memory: what `generate` is given, checked before the first token. Ships inside exports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode

from .cache import FwPKMCache
from .calls import CACHE_NAME, given_cache, owner_and_mode, rows_of
from .rows import ReadText, fingerprint


class FwPKMGenerationMixin(GenerationMixin):
    """`generate` and `read` of a model with memories; the rest is Transformers' own."""

    model: Any

    @torch.no_grad()
    def read(
        self,
        input_ids: Tensor,
        cache: FwPKMCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        memory: str | None = None,
    ) -> FwPKMCache:
        """Read a document into a memory, without gradients and logits, and end the text there.

        Args:
            input_ids: [B, T] tokens of the document, or of the rest of the text that the cache has begun.
            cache: to read into; default a new one.
            attention_mask: [B, T], 0 at padding.
            memory: as in `forward`.

        Returns:
            The cache: the document is in its memory, attention and positions start anew.

        Raises:
            ValueError: as `forward`, or `memory_mode` is not `on`, so that nothing would be remembered.
        """
        owner, mode = owner_and_mode(memory)
        if (mode or self.model.memory_mode) != "on":
            raise ValueError(
                f"memory mode {mode or self.model.memory_mode!r} writes nothing, so the document would not be "
                "remembered; set it to 'on'"
            )
        cache = self.model.new_cache(memory=owner) if cache is None else cache
        self.model(input_ids=input_ids, attention_mask=attention_mask, cache=cache, memory=memory)
        cache.end_text()
        return cache

    def generate(self, inputs: Tensor | None = None, *args: Any, memory: str | None = None, **kwargs: Any) -> Any:
        """Generate as Transformers does, through a memory of its own or that of a cache.

        Args:
            inputs: as there; with a cache that has read a text, the whole text from its beginning.
            *args: as there.
            memory: what to do with the memories, "on", "frozen" or "off", or whose those of this call are,
                "per-sequence" or "shared"; as in `forward`. Default: `memory` of the generation configuration, then of
                the model's.
            **kwargs: as there; `cache` and `past_key_values` are two names of one argument.

        Raises:
            ValueError: a cache of another class or of other sequences; inputs that do not go on from the cache's text;
                or a way of generating that a shared memory cannot serve.
        """
        cache = given_cache(kwargs.pop("past_key_values", None), kwargs.pop("cache", None))
        if cache is not None:
            kwargs[CACHE_NAME] = cache
            ids = inputs if inputs is not None else kwargs.get("input_ids")
            _check_continuation(cache.text, ids, kwargs.get("inputs_embeds"), kwargs.get("attention_mask"))
        given = args[0] if args else kwargs.get("generation_config")
        for config in (given, self.generation_config):
            memory = memory or getattr(config, "memory", None)
        with self._memories(*owner_and_mode(memory)):
            made = super().generate(inputs, *args, **kwargs)
            used = cache if cache is not None else getattr(made, CACHE_NAME, None)
            if used is not None and not getattr(given, "is_assistant", False):
                self._settle(used)
        return made

    def _settle(self, cache: FwPKMCache) -> None:
        """Read what assisted decoding has left unread, and keep no more of the past."""
        cache.deactivate_past_recording()
        unread, cache.unread = cache.unread, None
        if unread is not None:
            with torch.no_grad():
                given = {"inputs_embeds": unread.embeddings} if unread.ids is None else {"input_ids": unread.ids}
                self.model(**given, cache=cache)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Inputs of the next step, as Transformers makes them.

        Raises:
            ValueError: a part of the text without the cache that has read the rest.
        """
        found: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        step = found.get("input_ids")
        if step is not None and found.get(CACHE_NAME) is None and step.shape[1] < input_ids.shape[1]:
            raise ValueError(
                f"generate() passed the last {step.shape[1]} of {input_ids.shape[1]} tokens without the cache that "
                "has read the others: this release of Transformers is not compatible with the model; use "
                "use_cache=False, or a release that the model card lists"
            )
        if found.get("attention_mask") is not None:
            found.pop("position_ids", None)  # they follow from the mask; after padding on the right, theirs do not
        return found

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused.

        Raises:
            ValueError: always: Transformers' continuous batching has no place for a memory.
        """
        raise ValueError(
            "Transformers' continuous batching (generate_batch) keeps pages of attention alone, and would lose the "
            "memory; generate for several sessions with cache.join([...]) and split()"
        )

    @contextlib.contextmanager
    def _memories(self, owner: str | None, mode: str | None) -> Iterator[None]:
        """Within the context calls make memories of this owner and work in this mode; None changes nothing."""
        before = self.model.memory_owner, self.model.memory_mode
        self.model.memory_owner, self.model.memory_mode = owner or before[0], mode or before[1]
        try:
            yield
        finally:
            self.model.memory_owner, self.model.memory_mode = before

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Give `generate` a memory of its own, unless the caller brought one."""
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ValueError(f"cache_implementation={kind!r} cannot hold the memory; remove it")
        cache = model_kwargs.get(CACHE_NAME)
        owner = self.model.owner(None) if cache is None else cache.owner
        if owner == "shared" and self.model.memory_mode == "on" and self.config.memory_layers:
            _check_shared(generation_config, batch_size)
        if cache is None and generation_config.use_cache is not False:
            cache = model_kwargs[CACHE_NAME] = self.model.new_cache()
        if cache is not None and (
            generation_mode == GenerationMode.ASSISTED_GENERATION or getattr(generation_config, "is_assistant", False)
        ):
            cache.activate_past_recording()
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, *args, **kwargs
        )


def _check_shared(config: GenerationConfig, batch_size: int) -> None:
    """Raise ValueError for a way of generating that a memory which several sequences write cannot serve."""
    if (config.num_beams or 1) > 1:
        raise ValueError(
            f"num_beams={config.num_beams}: beam search would write every hypothesis into the shared memory; "
            "use memory='per-sequence', num_beams=1, or memory='frozen'"
        )
    sequences = batch_size * (config.num_return_sequences or 1)
    may_end = config.eos_token_id is not None or getattr(config, "stop_strings", None) is not None
    if sequences > 1 and may_end and (config.min_length or 0) < config.max_length:
        raise ValueError(
            f"{sequences} sequences that share a memory must end together, because the padding after a shorter "
            "one would be written; use memory='per-sequence', set min_new_tokens to max_new_tokens and truncate the "
            "texts yourself, or use memory='frozen' or 'off'"
        )


def _check_continuation(text: ReadText, ids: Tensor | None, embeddings: Tensor | None, mask: Tensor | None) -> None:
    """Check that what `generate` is given goes on from the text that a cache has read.

    Transformers takes the given text for the whole and reads only what is beyond the length of the cache, unless the
    mask is longer than the text.

    Raises:
        ValueError: the text is not longer than what the cache has read, or begins otherwise.
    """
    given = embeddings if embeddings is not None else ids
    if not text.places or given is None:
        return
    places = given.shape[1]
    if mask is not None and mask.shape[1] == text.places + places:
        return
    advice = "pass the whole text, or call cache.end_text() first to begin another one (its memory is kept)"
    if places <= text.places:
        raise ValueError(
            f"generate() got an input of length {places}, but the cache has read a text of length {text.places}; "
            f"{advice}"
        )
    if embeddings is not None or ids is None or text.fingerprint is None or len(ids) != len(text.lengths):
        return
    past = ids[:, : text.places]
    rows = rows_of(None if mask is None else mask[:, : text.places], len(past), text.places, ReadText())
    found = fingerprint(rows.pack(past), rows.counts)
    if rows.counts != text.lengths or not torch.equal(found, text.fingerprint.to(past.device)):
        raise ValueError(
            f"the text given to generate() does not begin with the {text.places} tokens that the cache has read; "
            f"{advice}"
        )
