"""Causal language model with fast-weight product key memories, for Transformers.

A call with a cache streams: however a text is cut into calls, the logits are the same. A call without one is the
arithmetic of training: the text starts from the initial memory and chunk boundaries follow ``config.fwpkm_boundary``.
Sequences of a batch share one memory, as in the paper; give each its own call (or cache) to keep them apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .attention import causal_attention, rotary_angles, rotate
from .cache import FwPKMCache
from .config_checks import check_config
from .configuration_fwpkm import FwPKMHFConfig
from .memory import MEMORY_MODES, MemorySettings, MemoryStream
from .memory_block import FastWeightProductKeyMemory, RMSNorm
from .weight_checks import load_checked

PREFILL_SEGMENT = 2048
"""Tokens that a long call with a cache takes through all layers at once; bounds its memory, changes no result."""


class FwPKMAttention(nn.Module):
    """Grouped-query attention with rotary positions, optional per-head norms and an optional sliding window."""

    def __init__(self, config: FwPKMHFConfig, layer_idx: int):
        super().__init__()
        self.layer_idx, self.head_dim, self.window = layer_idx, config.head_dim, config.attention_windows[layer_idx]
        self.dropout = config.attention_dropout
        width, bias = config.hidden_size, config.linear_bias
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, width, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], key_mask: Tensor | None,
                cache: FwPKMCache | None) -> Tensor:  # fmt: skip
        """Attend from [B, T, hidden_size]; ``key_mask`` [B, past + T] is False at padding."""
        heads = (-1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(hidden).unflatten(-1, heads).transpose(1, 2) for project in projections)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        mask = None if key_mask is None else key_mask[:, -k.shape[2] :]
        dropout = self.dropout if self.training else 0.0
        return self.o_proj(causal_attention(q, k, v, self.window, mask, dropout).transpose(1, 2).flatten(2))


class FwPKMMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: FwPKMHFConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.linear_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.linear_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.linear_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, T, hidden_size] to the same."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class FwPKMDecoderLayer(GradientCheckpointingLayer):
    """A memory (in chosen layers), attention and MLP, each added to the residual stream."""

    def __init__(self, config: FwPKMHFConfig, layer_idx: int):
        super().__init__()
        self.layer_idx, self.hidden_dropout = layer_idx, config.hidden_dropout
        self.memory = _memory(config) if layer_idx in config.fwpkm_layers else None
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = FwPKMAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FwPKMMLP(config)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], key_mask: Tensor | None = None,
                token_mask: Tensor | None = None, memory_mode: str = "on",
                past_key_values: FwPKMCache | None = None) -> Tensor:  # fmt: skip
        """Map [B, T, hidden_size] to the same; ``token_mask`` [B, T] keeps padding out of the memory."""
        if self.memory is not None:
            stream = None if past_key_values is None else past_key_values.memory[self.layer_idx]
            hidden = self.memory(hidden, stream, memory_mode, token_mask)
        attended = self.self_attn(self.input_layernorm(hidden), rotary, key_mask, past_key_values)
        hidden = hidden + F.dropout(attended, self.hidden_dropout, self.training)
        return hidden + F.dropout(self.mlp(self.post_attention_layernorm(hidden)), self.hidden_dropout, self.training)


def _memory(config: FwPKMHFConfig) -> FastWeightProductKeyMemory:
    settings = MemorySettings(
        topk=config.fwpkm_topk,
        chunk_size=config.fwpkm_chunk_size,
        lookahead=config.fwpkm_lookahead,
        inner_lr=config.fwpkm_inner_lr,
        addressing_weight=config.fwpkm_addressing_weight,
        score=config.fwpkm_score,
    )
    return FastWeightProductKeyMemory(
        config.hidden_size, config.fwpkm_num_heads, config.fwpkm_num_subkeys, config.fwpkm_key_dim,
        config.fwpkm_value_dim, settings, eps=config.rms_norm_eps, gate=config.fwpkm_gate,
        normalize_targets=config.fwpkm_normalize_targets, boundary=config.fwpkm_boundary,
    )  # fmt: skip


class FwPKMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = FwPKMHFConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FwPKMDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["memory.sub_keys", "memory.values"]

    def __init__(self, config: FwPKMHFConfig, *inputs: Any, **kwargs: Any):
        check_config(config)
        super().__init__(config, *inputs, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as Transformers does, and check that every tensor is there, fits, and holds finite numbers.

        Raises:
            ValueError: it is not so, with the file and the tensor.
        """
        return load_checked(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RMSNorm):
            init.zeros_(module.weight)
        elif isinstance(module, FastWeightProductKeyMemory):
            init.uniform_(module.sub_keys, -(module.key_dim**-0.5), module.key_dim**-0.5)
            init.normal_(module.values, 0.0, module.values.shape[1] ** -0.5)
        else:
            super()._init_weights(module)


class FwPKMModel(FwPKMPreTrainedModel):
    """The decoder: token ids to final hidden states."""

    _keys_to_ignore_on_load_unexpected = ["^lm_head"]  # noqa: RUF012

    def __init__(self, config: FwPKMHFConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([FwPKMDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_dim = int(config.head_dim * config.partial_rotary_factor)
        self.gradient_checkpointing = False
        self.memory_mode = "on"
        self.post_init()

    def new_cache(self) -> FwPKMCache:
        """A cache that starts from the initial memory and an empty text."""
        streams: dict[int, MemoryStream] = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer.memory, FastWeightProductKeyMemory):
                streams[index] = layer.memory.new_stream()
        return FwPKMCache(self.config, streams)

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
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: [B, T] tokens, or give ``inputs_embeds``.
            attention_mask: [B, past + T], 0 at padding. Padding is not seen and not written, but it still reads the
                memory and so takes part in moving its sub-keys; prompts of equal length need none.
            position_ids: [B, T]; default the positions after the cache.
            past_key_values: from ``new_cache()`` or an earlier call.
            inputs_embeds: [B, T, hidden_size].
            use_cache: stream through a cache. Default: true in evaluation mode, false in training mode or with
                ``config.use_cache`` off; given a cache, always true.
            output_hidden_states: also return the states before every layer and after the last norm.

        Returns:
            ``last_hidden_state`` [B, T, hidden_size], the cache, and hidden states when asked.

        Raises:
            ValueError: wrong inputs, or a cache of another kind.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(past_key_values, use_cache)
        past, length = 0 if cache is None else cache.get_seq_length(), hidden.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=hidden.device).unsqueeze(0)
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        mask = _padding_mask(attention_mask, past + length)
        segment = length
        if cache is not None and not keep and not torch.is_grad_enabled():
            segment = PREFILL_SEGMENT
        states: list[Tensor] = []
        outputs = [
            self._layers(
                hidden[:, start : start + segment],
                position_ids[:, start : start + segment],
                None if mask is None else mask[:, : past + min(start + segment, length)],
                cache,
                states if keep else None,
            )
            for start in range(0, length, segment)
        ]
        last = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        return BaseModelOutputWithPast(
            last_hidden_state=last, past_key_values=cache, hidden_states=(*states, last) if keep else None
        )

    def _layers(
        self,
        hidden: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: FwPKMCache | None,
        states: list[Tensor] | None,
    ) -> Tensor:
        rotary = rotary_angles(positions, self.rotary_dim, self.config.rope_theta)
        token_mask = None if mask is None else mask[:, -hidden.shape[1] :]
        for layer in self.layers:
            if states is not None:
                states.append(hidden)
            hidden = layer(hidden, rotary, mask, token_mask, self.memory_mode, past_key_values=cache)
        return self.norm(hidden)

    def _cache(self, given: FwPKMCache | None, use_cache: bool | None) -> FwPKMCache | None:
        if given is not None:
            if not isinstance(given, FwPKMCache):
                kind = type(given).__name__
                raise ValueError(f"past_key_values is a {kind}, which has no fast-weight memory: use model.new_cache()")
            return given
        if self.gradient_checkpointing and self.training:
            return None
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        return self.new_cache() if use_cache else None


def _padding_mask(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """The mask as bool [B, length], or None when nothing is masked."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[1] != length:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; give [batch, {length}]: one entry for every "
            "token in the cache and in this call, 0 at padding"
        )
    return attention_mask.bool()


class FwPKMForCausalLM(FwPKMPreTrainedModel, GenerationMixin):
    """Language model head, loss and generation through the streaming memory."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: FwPKMHFConfig):
        super().__init__(config)
        self.model = FwPKMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def new_cache(self) -> FwPKMCache:
        """A cache that starts from the initial memory and an empty text."""
        return self.model.new_cache()

    @property
    def memory_mode(self) -> str:
        """What the memories do in later calls; may be set between any two, and holds until it is set again.

        ``on`` (default): read and write. ``frozen``: read what the cache holds, write nothing. ``off``: read the
        initial memory, write nothing.

        Raises:
            ValueError: it is set to something else.
        """
        return self.model.memory_mode

    @memory_mode.setter
    def memory_mode(self, mode: str) -> None:
        if mode not in MEMORY_MODES:
            raise ValueError(f"memory_mode={mode!r} is not known; choose one of: {', '.join(MEMORY_MODES)}")
        self.model.memory_mode = mode

    @contextlib.contextmanager
    def memory_writes(self, enabled: bool) -> Iterator[None]:
        """Within the context the memory is written (``on``) or only read (``frozen``)."""
        before = self.memory_mode
        self.memory_mode = "on" if enabled else "frozen"
        try:
            yield
        finally:
            self.memory_mode = before

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
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """Predict the next token of every token; arguments as in :meth:`FwPKMModel.forward`, and

        Args:
            labels: [B, T], the input ids themselves (they are shifted here), -100 where there is no loss.
            logits_to_keep: only the logits of the last so many tokens; 0 for all.

        Returns:
            ``loss`` when labels are given, ``logits`` [B, T, vocab_size], the cache.

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
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Give ``generate`` a memory of its own, unless the caller brought one.

        Raises:
            ValueError: a mode of generation that a written memory cannot serve.
        """
        if self.memory_mode == "on" and (generation_config.num_beams or 1) > 1:
            raise ValueError(
                f"num_beams={generation_config.num_beams}: beam search would write every hypothesis into one memory; "
                "use num_beams=1, or model.memory_mode='frozen'"
            )
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ValueError(f"cache_implementation={kind!r} has no place for the memory; leave it out")
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_cache()
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
