"""Reading documents into a memory and writing text from it, for tools; not part of an export."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .cache import FwPKMCache
from .modeling_fwpkm import FwPKMForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the most probable one."""

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, options: Any) -> Sampling:
        """What the options of a tool say, by the same names."""
        return cls(**{item.name: getattr(options, item.name) for item in fields(cls)})

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `model.generate`."""
        common = {"max_new_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return {**common, "do_sample": False}
        return {
            **common, "do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p
        }  # fmt: skip


def read_text(path: str | Path) -> str:
    """Text of a file, plain or gzip (told by content).

    Raises:
        ValueError: the file is not UTF-8 text.
    """
    data = Path(path).read_bytes()
    try:
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not UTF-8 text (plain or gzip): {error}") from error


def remember(model: FwPKMForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str, cache: FwPKMCache) -> int:
    """Read a document into the memory of `cache` and end it there; returns its tokens.

    Raises:
        ValueError: the text has no tokens.
    """
    if not tokenizer(text, add_special_tokens=False).input_ids:
        raise ValueError("the text to remember is empty")
    ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    model.read(ids, cache)
    return int(ids.shape[1])


def continue_text(
    model: FwPKMForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    cache: FwPKMCache | None = None,
    streamer: BaseStreamer | None = None,
) -> str:
    """Continue a prompt from what `cache` remembers, or from the initial memory.

    Args:
        model: its `memory_mode` says whether prompt and answer are written.
        tokenizer: the model's.
        prompt: text to continue.
        sampling: how.
        cache: with no text begun (fresh, or after `end_text`); goes on to hold prompt and answer.
        streamer: is handed tokens as they come.

    Returns:
        The new text.

    Raises:
        ValueError: the prompt has no tokens.
    """
    if not tokenizer(prompt, add_special_tokens=False).input_ids:
        raise ValueError("the prompt is empty; give --prompt, --prompt-file or text on standard input")
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        cache=model.new_cache() if cache is None else cache,
        streamer=streamer,
        **sampling.arguments(),
    )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
