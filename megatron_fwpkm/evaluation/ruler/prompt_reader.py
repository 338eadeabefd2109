"""How a model reads a prompt and goes on: greedily, with a memory of its own for every sample."""

from __future__ import annotations

import numpy as np
import torch

from ..text_model import MemoryMode, TextModel


class PromptReader:
    """Generates the answers of one model."""

    def __init__(self, model: TextModel, vocab_size: int, eod: int) -> None:
        """
        Args:
            model: the model.
            vocab_size: the tokenizer's; ids beyond it are padding of the embedding and never generated.
            eod: the token that ends an answer.
        """
        self.model, self._vocab_size, self._eod = model, vocab_size, eod

    @torch.inference_mode()
    def answer(self, prompt: np.ndarray, budget: int, mode: MemoryMode) -> list[int]:
        """Up to `budget` tokens after `prompt` [N], until the end-of-document token, which is left out."""
        cache = self.model.new_cache()
        logits = self.model.read(prompt, cache, mode)
        given: list[int] = []
        while True:
            token = int(logits[: self._vocab_size].argmax())
            if token == self._eod:
                return given
            given.append(token)
            if len(given) == budget:
                return given
            logits = self.model.read([token], cache, mode)
