"""Documents as tokens, and the losses of a model that reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ...data.tokenizers import Tokenizer
from ..text_files import read_text_file
from ..text_model import MemoryMode, TextModel
from .loss_record import BlockLosses
from .perplexity_settings import PerplexitySettings

FLAG = "--text"


@dataclass(frozen=True)
class Document:
    """A text: BOS, where the model's documents begin with it, and the text's tokens."""

    source: str
    tokens: np.ndarray
    """int64 [N], N at least 2."""
    num_bytes: int
    """UTF-8 bytes of all tokens but the first: what the losses are the code length of."""


def load_documents(settings: PerplexitySettings, tokenizer: Tokenizer, bos: int | None) -> list[Document]:
    """Read and tokenize the files.

    Raises:
        ValueError: a file cannot be read, or has fewer than two tokens, so that nothing is predicted.
    """
    documents = []
    for path in settings.text:
        ids = np.asarray(tokenizer.encode(read_text_file(FLAG, path)), dtype=np.int64)
        tokens = np.concatenate([np.asarray([] if bos is None else [bos], dtype=np.int64), ids])[: settings.length]
        if len(tokens) < 2:
            raise ValueError(f"{FLAG} {path} has only {len(tokens)} token, so that no token follows another")
        predicted = [int(token) for token in tokens[1:]]
        documents.append(Document(path, tokens, len(tokenizer.decode(predicted).encode())))
    return documents


@torch.inference_mode()
def read_stream(
    model: TextModel, documents: Sequence[Document], mode: MemoryMode, segment: int, block: int
) -> list[BlockLosses]:
    """The losses of documents that are read one after the other, with the memory carried from one to the next.

    Args:
        model: any.
        documents: in order; between two of them attention forgets, and the memory writes what waits.
        mode: of the memory.
        segment: tokens per call.
        block: tokens whose losses are summed.
    """
    cache, found = model.new_cache(), []
    for number, document in enumerate(documents):
        if number:
            cache = model.next_text(cache)
        losses = torch.cat(list(_token_losses(model, document.tokens, cache, mode, segment)))
        found.append(BlockLosses.of(losses.double().cpu().numpy(), block))
    return found


def _token_losses(
    model: TextModel, tokens: np.ndarray, cache: Any, mode: MemoryMode, segment: int
) -> Iterator[torch.Tensor]:
    """Cross entropies of all tokens but the first, segment by segment.

    The last logits of a segment predict the first token of the next one: no token is left out at a border. The last
    token is read, too, for a memory that goes on.
    """
    for begin in range(0, len(tokens), segment):
        logits = model.read(tokens[begin : begin + segment], cache, mode, last_only=False)
        targets = torch.as_tensor(tokens[begin + 1 : begin + 1 + segment], device=logits.device)
        yield F.cross_entropy(logits[: len(targets)].float(), targets, reduction="none")
