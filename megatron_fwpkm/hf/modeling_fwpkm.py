"""Causal language model with fast-weight product key memories, for Transformers.

A call with a cache streams: however a text is cut into calls, the logits are the same (but for
`config.fwpkm_write_scale="official"`). A call without one is the arithmetic of training: the text starts from the
initial memory and chunk boundaries follow `config.fwpkm_boundary`.
Every sequence of a batch has a memory of its own, unless `memory="shared"` asks for one of all, as in the paper.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from ..ops.fast_weight_mlp.mlp_state import FastMLPWeights
from .attention import rotary_angles
from .attention_fields import yarn_scaling
from .cache import FwPKMCache
from .calls import (
    CACHE_NAME,
    check_owner,
    check_positions,
    check_shape,
    given_cache,
    output_cache,
    owner_and_mode,
    refuse_unknown,
    rows_of,
    without_padding,
)
from .config_checks import check_config
from .configuration_fwpkm import FwPKMHFConfig
from .decoder_layer import FwPKMDecoderLayer
from .drawn_tables import leave_out_drawn_tables, with_drawn_tables
from .generation_mixin import FwPKMGenerationMixin
from .memory import MEMORY_MODES, LayerMemory
from .memory_block import RMSNorm
from .rows import ReadText, Rows
from .weight_checks import load_checked

PREFILL_SEGMENT = 2048
"""Tokens that a long call with a cache takes through all layers at once; bounds its memory, changes no result (where
it would, a call is taken whole)."""


class FwPKMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = FwPKMHFConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FwPKMDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = [
        f"memory.{name}" for name in ("sub_keys", "values", *FastMLPWeights._fields)
    ]

    def __init__(self, config: FwPKMHFConfig, *inputs: Any, **kwargs: Any):
        check_config(config)
        super().__init__(config, *inputs, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as Transformers does, and check that every tensor is there, fits, and holds finite numbers.

        Raises:
            ValueError: it is not so, with the file and the tensor.
        """
        loaded = load_checked(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        return with_drawn_tables(loaded)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RMSNorm):
            init.zeros_(module.weight)
        elif init_own := getattr(module, "init_own", None):
            init_own()
        else:
            super()._init_weights(module)


class FwPKMModel(FwPKMPreTrainedModel):
    """The decoder: token ids to final hidden states."""

    _keys_to_ignore_on_load_unexpected = ["^lm_head"]  # noqa: RUF012

    def __init__(self, config: FwPKMHFConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([FwPKMDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        leave_out_drawn_tables(self)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_dim = int(config.head_dim * config.partial_rotary_factor)
        self.gradient_checkpointing = False
        self.memory_mode = "on"
        self.memory_owner: str | None = None
        """Whose memories calls make, within `generate`."""
        self.post_init()

    def new_cache(self, batch_size: int | None = None, memory: str | None = None) -> FwPKMCache:
        """A cache that starts from the initial memory and an empty text.

        Args:
            batch_size: sequences; default as many as its first call has.
            memory: "per-sequence" or "shared"; default that of the configuration.

        Raises:
            ValueError: an owner that is not known, or no sequences.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        memories: dict[int, LayerMemory] = {}
        for index, layer in enumerate(self.layers):
            if (block := getattr(layer, "memory", None)) is not None:
                memories[index] = block.new_memory()
        return FwPKMCache(self, memories, check_owner(memory or self.owner(None)), batch_size)

    def owner(self, memory: str | None) -> str:
        """Whose the memories of a call are: as the call says, else the context around it, else the configuration."""
        return check_owner(memory or self.memory_owner or self.config.memory)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: FwPKMCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        memory: str | None = None,
        cache: FwPKMCache | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: [B, T] tokens, or give `inputs_embeds`.
            attention_mask: [B, past + T] or [B, T], 0 at padding, which reaches no layer: the other tokens give what
                they give without it. Rows of unequal length cannot share a memory that is written.
            position_ids: [B, T]; only those of the text, which are the default: they are checked.
            past_key_values: from `new_cache()` or an earlier call.
            inputs_embeds: [B, T, hidden_size].
            use_cache: stream through a cache. Default: true in evaluation mode, false in training mode or with
                `config.use_cache` off; given a cache, always true.
            output_hidden_states: also return the states before every layer and after the last norm.
            memory: what this call does with the memories: "on" reads and writes, "frozen" only reads, "off" reads the
                initial ones; default `memory_mode`. Or, in a call without a cache, whose they are: "per-sequence" or
                "shared" by the batch, as in the paper; default that of the configuration.
            cache: another name of `past_key_values`.
            **kwargs: what Transformers may add; anything that asks for more is refused.

        Returns:
            `last_hidden_state` [B, T, hidden_size], the cache, and hidden states when asked.

        Raises:
            ValueError: wrong inputs, or a cache of another kind.
        """
        refuse_unknown(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        past = self._cache(given_cache(past_key_values, cache), use_cache, owner_and_mode(memory)[0])
        given = past_key_values is not None or cache is not None
        run = self._run if past is None or past.unread is None else self._after_unread
        return run(hidden, input_ids, attention_mask, position_ids, past, given, output_hidden_states, memory)

    def _run(
        self,
        hidden: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past: FwPKMCache | None,
        has_cache: bool,
        output_hidden_states: bool | None,
        memory: str | None,
    ) -> BaseModelOutputWithPast:
        """`forward` from embeddings [B, T, hidden_size]; `has_cache` when the caller gave the cache."""
        text = ReadText() if past is None else past.text
        check_shape(hidden, text, past is not None)
        batch, places, _ = hidden.shape
        owner, mode = owner_and_mode(memory)
        mode = mode or self.memory_mode
        writes = bool(self.config.memory_layers) and mode == "on"
        shared = (self.owner(owner) if past is None else past.owner) == "shared"
        if past is not None and owner not in (None, past.owner):
            raise ValueError(f"memory={owner!r}, but the memory of the cache is {past.owner!r}; omit memory")
        rows = rows_of(attention_mask, batch, places, text)
        if writes and shared and not rows.equal:
            raise ValueError(
                f"the rows of this batch have {min(rows.counts)} to {max(rows.counts)} tokens without padding, but "
                "rows that share a memory must have equal length; give every row a memory of its own "
                "(memory='per-sequence'), pass rows of equal length, or read without writing (memory='frozen')"
            )
        check_positions(position_ids, rows, text, has_cache)
        if past is not None:
            if writes:
                past.expect(batch)
            if past.past is not None:
                past.past.remember(past.clone(), hidden, input_ids)
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        ids = None if input_ids is None else rows.pack(input_ids)
        last, states = self._decode(rows.pack(hidden), ids, rows, past, bool(keep), mode, shared)
        if past is not None:
            past.text = replace(past.text, places=text.places + places)
        return BaseModelOutputWithPast(
            last_hidden_state=rows.unpack(last),
            hidden_states=tuple(rows.unpack(state) for state in (*states, last)) if keep else None,
            **output_cache(past),
        )

    def _after_unread(
        self,
        hidden: Tensor,
        ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: FwPKMCache | None,
        has_cache: bool,
        output_hidden_states: bool | None,
        memory: str | None,
    ) -> BaseModelOutputWithPast:
        """`_run` that first reads the tokens which `crop()` has left, and returns nothing of them."""
        assert cache is not None and cache.unread is not None
        unread, cache.unread = cache.unread, None
        tokens = hidden.shape[1]
        given = unread.before(hidden, ids, attention_mask, position_ids, cache.text)
        output = self._run(*given, cache, has_cache, output_hidden_states, memory)
        states = None if output.hidden_states is None else tuple(x[:, -tokens:] for x in output.hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=output.last_hidden_state[:, -tokens:], hidden_states=states, **output_cache(cache)
        )

    def _decode(
        self,
        hidden: Tensor,
        ids: Tensor | None,
        rows: Rows,
        cache: FwPKMCache | None,
        keep: bool,
        mode: str,
        shared: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers and the last norm over packed rows [B, T', hidden_size], and the states before every layer."""
        segment = length = hidden.shape[1]
        if cache is not None and not keep and not torch.is_grad_enabled() and not self.config.cuts_matter:
            segment = PREFILL_SEGMENT
        states: list[Tensor] = []
        outputs = []
        for start in range(0, length, max(1, segment)):
            stop = min(start + segment, length)
            counts = rows.part(start, stop)
            piece = None if ids is None else ids[:, start:stop]
            kept = states if keep else None
            outputs.append(self._layers(hidden[:, start:stop], piece, counts, cache, kept, mode, shared))
        if not outputs:  # nothing but padding
            return hidden, [hidden] * len(self.layers)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), states

    def _layers(
        self,
        hidden: Tensor,
        ids: Tensor | None,
        counts: tuple[int, ...],
        cache: FwPKMCache | None,
        states: list[Tensor] | None,
        mode: str,
        shared: bool,
    ) -> Tensor:
        text, tokens, device = ReadText() if cache is None else cache.text, hidden.shape[1], hidden.device
        config, positions = self.config, text.positions(tokens, device)
        rotary = rotary_angles(
            positions, self.rotary_dim, config.rope_theta, config.rope_scaling_factor, yarn_scaling(config)
        )
        key_mask = text.key_mask(tokens, device)
        if cache is not None:
            cache.shift = None if min(counts) == tokens else tokens - torch.tensor(counts, device=device)
        for layer in self.layers:
            if states is not None:
                states.append(hidden)
            hidden = layer(hidden, rotary, key_mask, mode, cache=cache, counts=counts, shared=shared)
        if cache is not None:
            cache.text = text.after(counts, tokens, ids)
        return self.norm(hidden)

    def _cache(self, given: FwPKMCache | None, use_cache: bool | None, owner: str | None) -> FwPKMCache | None:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            if given is not None:
                raise ValueError(
                    "gradient checkpointing runs layers twice and would write the cache twice; pass no cache"
                )
            return None
        if given is not None:
            return given
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        return self.new_cache(memory=owner) if use_cache else None


class FwPKMForCausalLM(FwPKMPreTrainedModel, FwPKMGenerationMixin):
    """Language model head, loss and generation through the streaming memory."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: FwPKMHFConfig):
        super().__init__(config)
        self.model = FwPKMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def new_cache(self, batch_size: int | None = None, memory: str | None = None) -> FwPKMCache:
        """A cache that starts from the initial memory and an empty text; see `FwPKMModel.new_cache`."""
        return self.model.new_cache(batch_size, memory)

    @property
    def memory_mode(self) -> str:
        """What the memories do in later calls; may be set between any two, and holds until it is set again.

        `on` (default): read and write. `frozen`: read what the cache holds, write nothing. `off`: read the
        initial memory, write nothing.

        Raises:
            ValueError: it is set to something else.
        """
        return self.model.memory_mode

    @memory_mode.setter
    def memory_mode(self, mode: str) -> None:
        """Set the mode; raises ValueError where it is not known."""
        if mode not in MEMORY_MODES:
            raise ValueError(f"memory_mode={mode!r} is not known; choose one of: {', '.join(MEMORY_MODES)}")
        self.model.memory_mode = mode

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: FwPKMCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        memory: str | None = None,
        cache: FwPKMCache | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """Predict the next token of every token; arguments as in `FwPKMModel.forward`, and

        Args:
            labels: [B, T], the input ids themselves (they are shifted here), -100 where there is no loss. Padding has
                none, whatever its labels are.
            num_items_in_batch: the loss is the sum over tokens divided by this; default their mean.
            logits_to_keep: only the logits of the last so many tokens; 0 for all.

        Returns:
            `loss` when labels are given, `logits` [B, T, vocab_size], the cache.

        Raises:
            ValueError: as there.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            memory=memory,
            cache=cache,
            return_dict=True,  # whatever the configuration says of this model's own output
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            if attention_mask is not None:
                labels = without_padding(labels, attention_mask)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, **output_cache(outputs.get(CACHE_NAME))
        )
