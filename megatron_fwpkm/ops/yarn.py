"""YaRN (arXiv 2309.00071): rotary position embeddings for texts longer than those that a model was trained on.

A pair of channels turns by its frequency per token. Pairs that turn more than `beta_fast` times over the original
length keep their frequency, for they tell near tokens apart; those that turn less than `beta_slow` times have it
divided by `factor`, so that no angle is larger than in training; between them the share that is divided grows linearly
with the pair's number. Cosines and sines are multiplied by 0.1 ln(factor) + 1, which sharpens attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Yarn:
    """How rotary positions are stretched.

    Attributes:
        factor: of the length; 1 changes nothing.
        original_length: tokens that the model was trained on.
        beta_fast: turns over them from which a pair keeps its frequency.
        beta_slow: turns over them up to which its frequency is divided by the factor.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def frequencies(self, plain: Tensor, base: float) -> Tensor:
        """The frequencies of all pairs, [pairs], of those without YaRN and their base."""
        pairs = len(plain)
        first = max(math.floor(self._pair_of(self.beta_fast, pairs, base)), 0)
        last: float = min(math.ceil(self._pair_of(self.beta_slow, pairs, base)), 2 * pairs - 1)
        if first == last:
            last += 0.001
        numbers = torch.arange(pairs, dtype=plain.dtype, device=plain.device)
        divided = ((numbers - first) / (last - first)).clamp(0, 1)
        return plain / self.factor * divided + plain * (1 - divided)

    def _pair_of(self, turns: float, pairs: int, base: float) -> float:
        """The number of the pair, with fractions, that turns so often over the original length."""
        return pairs * math.log(self.original_length / (turns * 2 * math.pi)) / math.log(base)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
