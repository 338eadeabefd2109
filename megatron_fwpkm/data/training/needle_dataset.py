"""Needle mixture: windows of text in which facts are stated once and asked again, laid over on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...config import NeedleConfig
from ..tokenizers import Tokenizer
from .needles import EncodedFact, NeedleSpec


class NeedleDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Lays facts over a share of another dataset's windows.

    In a chosen window every fact's sentence stands at a random place of the first half, and again, in another order, in
    the second half; there its value can be predicted only by remembering. Everything about item i is drawn from (seed,
    split, i), so neither workers nor resuming change it. Such a window counts as one document: a reset or a position
    restart between a fact and its repetition would ask for what was just erased.

    Weights. The training loss is sum(loss * loss_mask) / (number of positions with loss_mask > 0). With T such
    positions in a window and A answer tokens in its second half, each of those A positions has the weight 1 +
    answer_weight * T / A, so a window's share is `mean LM loss + answer_weight * mean loss of its answers`. The first
    statement of a fact cannot be predicted and keeps weight 1.
    """

    def __init__(
        self,
        base: torch.utils.data.Dataset[dict[str, torch.Tensor]],
        needle: NeedleConfig,
        tokenizer: Tokenizer,
        *,
        seq_length: int,
        seed: int,
        split: int,
    ) -> None:
        """`base` items have T = `seq_length` tokens; `split` (0 train, 1 validation, 2 test) keeps the splits' facts
        apart.

        Raises:
            ValueError: a fraction outside 0..1, no facts, a negative answer weight, windows too short for the facts, or
                what `NeedleSpec.from_config` refuses.
        """
        if not 0 <= needle.fraction <= 1:
            raise ValueError(f"--needle-fraction {needle.fraction} must be between 0 and 1")
        if needle.facts < 1:
            raise ValueError(f"--needle-facts {needle.facts} must be at least 1")
        if needle.answer_weight < 0:
            raise ValueError(f"--needle-answer-weight {needle.answer_weight} must not be negative")
        self.base = base
        self.needle = needle
        self.spec = NeedleSpec.from_config(needle, tokenizer)
        self._key = (seed, split)
        facts = self.spec.draw(np.random.default_rng(0), needle.facts)
        _check_space(sum(len(self.spec.encode_fact(fact).tokens) for fact in facts), seq_length // 2, needle.facts)

    def __len__(self) -> int:
        """As many windows as the dataset below."""
        return len(self.base)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """The window at `index`, with facts laid over or untouched."""
        item: dict[str, Any] = self.base[index]
        rng = np.random.default_rng([*self._key, index])
        if rng.random() >= self.needle.fraction:
            return item
        facts = [self.spec.encode_fact(fact) for fact in self.spec.draw(rng, self.needle.facts)]
        text = torch.cat((item["tokens"], item["labels"][-1:])).numpy()
        covered, answers = overlay_facts(text, facts, rng)
        tokens, labels = torch.from_numpy(text[:-1].copy()), torch.from_numpy(text[1:].copy())
        mask = item["loss_mask"].numpy().copy()
        mask[covered[:-1]] = 1.0  # an end-of-document token that a fact replaced is no longer one
        count = np.count_nonzero(mask)
        mask[answers - 1] = 1.0 + self.needle.answer_weight * count / len(answers)
        starts = torch.zeros(len(tokens), dtype=torch.bool)
        starts[0] = True
        return {
            "tokens": tokens,
            "labels": labels,
            "loss_mask": torch.from_numpy(mask),
            "position_ids": torch.arange(len(tokens)),
            "document_starts": starts,
        }


def overlay_facts(
    text: np.ndarray, facts: Sequence[EncodedFact], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Write every fact into the first half of `text` [N] and again into the second, in place and without overlaps.

    Returns:
        `covered` [N] bool, where a fact stands now, and `answers` int64, the positions of the values' tokens in the
        second half.
    """
    covered = np.zeros(len(text), dtype=bool)
    answers: list[np.ndarray] = []
    half = (len(text) - 1) // 2
    for begin, end in ((0, half), (half, len(text))):
        order = rng.permutation(len(facts))
        answers = []
        for start, which in zip(_places(rng, [len(facts[i].tokens) for i in order], begin, end), order, strict=True):
            fact = facts[which]
            text[start : start + len(fact.tokens)] = fact.tokens
            covered[start : start + len(fact.tokens)] = True
            answers.append(np.arange(start + fact.answer.start, start + fact.answer.stop))
    return covered, np.concatenate(answers)


def _places(rng: np.random.Generator, lengths: Sequence[int], begin: int, end: int) -> np.ndarray:
    """Starts of non-overlapping stretches of these lengths, in this order, uniformly spread over [begin, end)."""
    _check_space(sum(lengths), end - begin, len(lengths))
    gaps = np.sort(rng.integers(0, end - begin - sum(lengths) + 1, size=len(lengths)))
    return begin + gaps + np.cumsum([0, *lengths[:-1]])


def _check_space(needed: int, space: int, facts: int) -> None:
    if needed > space:
        raise ValueError(
            f"--needle-facts {facts}: the sentences need {needed} tokens, but half of --seq-length has {space}; use at "
            f"most {space * facts // needed}, a shorter --needle-template or a longer --seq-length"
        )
