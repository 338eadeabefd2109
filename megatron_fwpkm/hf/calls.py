"""What a call of the model is given, checked: keywords, cache, padding, positions, who owns the memory.

Ships inside exports. A model answers with normal-looking text whatever it is given, so what it cannot use it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from .cache import FwPKMCache
from .config_checks import MEMORY_OWNERS
from .memory import MEMORY_MODES
from .rows import ReadText, Rows

CACHE_NAME = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
"""What this release of Transformers calls the cache, in arguments and in outputs (`cache` from 5.24)."""
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
_NO_PACKING = (
    "packing several texts into one row is not supported, because memory and attention would continue from one text "
    "to the next; give each text its own row (without DataCollatorWithFlattening)"
)
_IGNORED = ("cache_position", "num_items_in_batch", "return_dict")
_MAY_BE = {"is_causal": True, "output_attentions": False, "output_router_logits": False}


def refuse_unknown(keywords: Mapping[str, object]) -> None:
    """Check what a call has no parameter for.

    `num_items_in_batch` belongs to the loss; `cache_position` says what the cache itself knows.

    Raises:
        ValueError: a keyword that asks for something the model does not do.
    """
    for name, value in keywords.items():
        if value is None or name in _IGNORED:
            continue
        if name in _PACKED:
            raise ValueError(f"{name}: {_NO_PACKING}")
        if name in _MAY_BE:
            if bool(value) != _MAY_BE[name]:
                raise ValueError(f"{name}={value} is not supported by this model; remove it")
            continue
        raise ValueError(
            f"forward() got an unexpected keyword argument {name!r} (a newer release of Transformers may have renamed "
            "it); remove it"
        )


def given_cache(past_key_values: object, cache: object) -> FwPKMCache | None:
    """The cache of a call, by either of its names.

    Raises:
        ValueError: two different ones, or one of another class.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("past_key_values and cache are two names of one argument, but differ here; pass only one")
    name, given = ("cache", cache) if cache is not None else ("past_key_values", past_key_values)
    if given is None or isinstance(given, FwPKMCache):
        return given
    kind = type(given).__name__
    if kind == FwPKMCache.__name__:
        raise ValueError(
            f"{name} belongs to a model whose code was loaded from another folder ({type(given).__module__}); read the "
            "documents with this model, or hand the cache over with save_pretrained() and from_pretrained()"
        )
    raise ValueError(f"{name} is a {kind}, which has no fast-weight memory; use model.new_cache()")


def owner_and_mode(memory: str | None) -> tuple[str | None, str | None]:
    """What the argument `memory` of a call says: whose a new memory is, or what is done with it; each may be None.

    Raises:
        ValueError: it is not known.
    """
    if memory is None:
        return None, None
    if memory in MEMORY_OWNERS:
        return memory, None
    if memory in MEMORY_MODES:
        return None, memory
    raise ValueError(f"memory={memory!r} is not known; choose one of: {', '.join((*MEMORY_OWNERS, *MEMORY_MODES))}")


def check_owner(owner: str) -> str:
    """Check whose a memory is; raises ValueError where it is not known."""
    if owner not in MEMORY_OWNERS:
        raise ValueError(f"memory={owner!r} is not known; choose one of: {', '.join(MEMORY_OWNERS)}")
    return owner


def check_shape(hidden: Tensor, text: ReadText, streams: bool) -> None:
    """Check embeddings [B, T, hidden_size] against what the cache has read, if the call `streams` through one.

    Raises:
        ValueError: no tokens, another number of sequences than in the cache, or a cache in `torch.export`.
    """
    if streams and torch.compiler.is_exporting():
        raise ValueError("torch.export cannot keep a memory from call to call; export with use_cache=False")
    if hidden.dim() != 3 or not hidden.shape[0] or not hidden.shape[1]:
        shape = tuple(hidden.shape[:-1])
        raise ValueError(f"the input has shape {shape}, expected [batch, tokens] with at least one token")
    if text.lengths and len(text.lengths) != hidden.shape[0]:
        raise ValueError(
            f"this call has batch size {hidden.shape[0]}, but the text in the cache has {len(text.lengths)}; end that "
            "text with cache.end_text() first (its memory is kept), or continue with the same sequences"
        )


def rows_of(attention_mask: Tensor | None, batch: int, places: int, text: ReadText) -> Rows:
    """Which places of a call hold tokens.

    Args:
        attention_mask: [B, T], or [B, past + T] as Transformers gives it; 0 at padding. None for no padding.
        batch: B.
        places: T.
        text: what the cache has read.

    Raises:
        ValueError: another shape, a mask of the past that is not what was read, or a mask in `torch.export`.
    """
    if attention_mask is None:
        return Rows((places,) * batch)
    if torch.compiler.is_exporting():
        raise ValueError(
            "torch.export cannot trace attention_mask, because the number of tokens in every row decides what is "
            "computed; export without it, for texts of one length without padding"
        )
    whole = text.places + places
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] not in (places, whole):
        shown = f"[{batch}, {whole}]" if whole == places else f"[{batch}, {whole}] or [{batch}, {places}]"
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {shown}: one entry for every position "
            "in the cache and in this call (or in this call alone), 0 at padding"
        )
    mask = attention_mask.bool()
    if text.places and mask.shape[1] == whole:
        past = tuple(mask[:, : text.places].sum(1).tolist())
        if past != text.lengths:
            raise ValueError(
                f"attention_mask covers {list(past)} tokens of the past, but the cache has read {list(text.lengths)}; "
                "tokens that were read cannot be masked later"
            )
    return Rows.of(mask[:, -places:])


def check_positions(position_ids: Tensor | None, rows: Rows, text: ReadText, has_cache: bool) -> None:
    """Check that positions go on where the cache ends, row by row.

    Raises:
        ValueError: they begin elsewhere (a cache that was not handed over), or restart (packed texts).
    """
    if position_ids is None or not rows.tokens:
        return
    if position_ids.dim() != 2:
        raise ValueError(f"position_ids has shape {tuple(position_ids.shape)}, expected [batch, tokens]")
    given = rows.pack(position_ids.expand(len(rows.counts), -1))
    expected = text.positions(rows.tokens, given.device)
    if rows.equal and torch.equal(given, expected.expand_as(given)):
        return
    beyond = torch.arange(rows.tokens, device=given.device) >= torch.tensor(rows.counts, device=given.device)[:, None]
    wrong = (given != expected) & ~beyond
    if not bool(wrong.any()):
        return
    row, place = (int(index) for index in wrong.nonzero()[0])
    found, wanted = int(given[row, place]), int(expected.expand_as(given)[row, place])
    if place and found <= int(given[row, place - 1]):
        raise ValueError(f"position_ids restart at {found} after {int(given[row, place - 1])}: {_NO_PACKING}")
    if not has_cache and not place:
        raise ValueError(
            f"position_ids begin at {found}, but no cache with the preceding tokens was passed; pass it as "
            "past_key_values or cache, or pass the whole text"
        )
    raise ValueError(
        f"position_ids has {found} where the text continues at {wanted}; omit position_ids, or pass the positions "
        "of the text"
    )


def without_padding(labels: Tensor, attention_mask: Tensor) -> Tensor:
    """Labels [B, T] that count in the loss as those of the text without padding do; others become -100.

    A row's first token is predicted by nothing, even if padding stands before it.
    """
    mask = attention_mask[:, -labels.shape[1] :].bool()
    return labels.masked_fill(~mask | (mask.long().cumsum(1) == 1), -100)


def output_cache(cache: FwPKMCache | None) -> dict[str, Any]:
    """The cache as a field of an output, by the name of this release."""
    return {CACHE_NAME: cache}
