"""The log-likelihood of whole documents, each read through a memory of its own. Needs no lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def document_log_likelihoods(
    model: Any, documents: Sequence[Sequence[int]], prefix: int, *, segment: int, max_length: int
) -> list[float]:
    """Natural logarithms of the probabilities of documents that are read side by side.

    Args:
        model: `FwPKMForCausalLM` in evaluation mode.
        documents: token ids of each; an empty one has log-likelihood 0.
        prefix: the token before the first one of every document. A document that begins with it is not given it again,
            and the token that is there is not scored.
        segment: tokens of a call, whose logits [documents, segment, vocabulary] are held at once.
        max_length: after so many tokens attention and positions begin anew; the memory goes on.

    Returns:
        One number per document, the same whatever the other documents are.
    """
    texts = [list(tokens) if tokens and tokens[0] == prefix else [prefix, *tokens] for tokens in documents]
    sums = torch.zeros(len(texts), dtype=torch.float64)
    read = [row for row, text in enumerate(texts) if len(text) > 1]
    if not read:
        return sums.tolist()
    cache = model.new_cache(memory="per-sequence")
    longest = max(len(text) for text in texts) - 1
    for begin, end in _calls(longest, segment, max_length):
        if begin and begin % max_length == 0:
            cache.end_text()
        inputs, targets, mask = _padded([texts[row][begin : end + 1] for row in read], end - begin, model.device)
        logits = model(input_ids=inputs, attention_mask=mask, cache=cache).logits
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(exact.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
        sums[read] -= losses.view_as(targets).double().sum(1).cpu()
    return sums.tolist()


def _calls(length: int, segment: int, max_length: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of the calls that read `length` tokens; none goes over a multiple of `max_length`."""
    begin = 0
    while begin < length:
        end = min(begin + segment, (begin // max_length + 1) * max_length, length)
        yield begin, end
        begin = end


def _padded(parts: Sequence[Sequence[int]], width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What is read and what it predicts, -100 at padding, and where there is no padding: each [rows, width].

    Args:
        parts: of every row the tokens that are read and one more; fewer, or none, where a document has ended.
        width: tokens of the longest row.
        device: of the tensors.
    """
    inputs, targets = torch.zeros(len(parts), width, dtype=torch.long), torch.full((len(parts), width), -100)
    mask = torch.zeros(len(parts), width, dtype=torch.long)
    for row, part in enumerate(parts):
        count = max(len(part) - 1, 0)
        inputs[row, :count] = torch.tensor(part[:-1], dtype=torch.long)
        targets[row, :count] = torch.tensor(part[1:], dtype=torch.long)
        mask[row, :count] = 1
    return inputs.to(device), targets.to(device), mask.to(device)
