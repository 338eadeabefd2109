"""The self-test of an evaluation: no token may change what a model said before it."""

from __future__ import annotations

import numpy as np
import torch

from .causality_verdict import CausalityCheck
from .text_model import TextModel

_LEAST_TOKENS, _MOST_TOKENS = 3, 2048


@torch.inference_mode()
def check_causality(model: TextModel, tokens: np.ndarray, vocab_size: int) -> CausalityCheck:
    """Read `tokens` [N] twice, the second time with the middle token changed, each time through a memory of its own.

    Of more than 2,048 tokens only the first are read, since all logits are held. One or two tokens are repeated up to
    three, so that the changed one has a token before it and one after it.
    """
    tokens = np.resize(tokens, max(_LEAST_TOKENS, min(len(tokens), _MOST_TOKENS)))
    position = len(tokens) // 2
    changed = tokens.copy()
    changed[position] = (changed[position] + 1) % vocab_size
    logits = [model.read(row, model.new_cache(), last_only=False) for row in (tokens, changed)]
    return CausalityCheck(
        position,
        torch.equal(logits[0][:position], logits[1][:position]),
        not torch.equal(logits[0][position + 1 :], logits[1][position + 1 :]),
    )
