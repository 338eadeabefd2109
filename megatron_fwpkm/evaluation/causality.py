"""The self-test of an evaluation: no token may change what a model said before it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch

from .text_model import TextModel

_MOST_TOKENS = 2048


@dataclass(frozen=True)
class CausalityCheck:
    """Whether changing a token left all logits before it unchanged."""

    changed: int
    """Position of the changed token."""
    before_identical: bool
    """The logits of all earlier positions are identical bit for bit."""
    after_differs: bool
    """Some later logits differ, so the check could have failed."""

    @property
    def passed(self) -> bool:
        """Earlier logits are identical, and later ones show that the change arrived."""
        return self.before_identical and self.after_differs

    def exit_status(self) -> int:
        """That of a tool: 0, or 1 after an error message if the check failed."""
        if not self.passed:
            print(
                "error: the causality check failed: changing a token changed earlier logits, or had no effect",
                file=sys.stderr,
            )
        return int(not self.passed)


@torch.inference_mode()
def check_causality(model: TextModel, tokens: np.ndarray, vocab_size: int) -> CausalityCheck:
    """Read `tokens` [N] twice, the second time with the middle token changed, each time through a memory of its own.

    Of more than 2,048 tokens only the first are read, since all logits are held.
    """
    tokens = tokens[:_MOST_TOKENS]
    position = len(tokens) // 2
    changed = tokens.copy()
    changed[position] = (changed[position] + 1) % vocab_size
    logits = [model.read(row, model.new_cache(), last_only=False) for row in (tokens, changed)]
    return CausalityCheck(
        position,
        torch.equal(logits[0][:position], logits[1][:position]),
        not torch.equal(logits[0][position + 1 :], logits[1][position + 1 :]),
    )
