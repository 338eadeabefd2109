"""Adapts a memory to domains in turn, and measures all domains without leaving a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..block_losses import BlockLosses, document_losses
from ..text_model import MemoryMode, TextModel
from .domain_settings import ADAPTED, MEMORY_OFF, DomainSettings
from .domain_texts import DomainTexts
from .stage_record import StageKey, StageRecord


class StageReader:
    """A model, and the memories that it has written while it read the domains in some order.

    Stages of an order follow each other cheapest; an earlier stage is reached by adapting anew, with equal results.
    """

    def __init__(self, settings: DomainSettings, texts: Sequence[DomainTexts], model: TextModel) -> None:
        """Nothing is read yet."""
        self._settings, self._texts, self._model = settings, texts, model
        self._orders = settings.all_orders()
        self._reached: dict[int, tuple[int, Any]] = {}

    def run(self, key: StageKey) -> StageRecord:
        """Adapt as far as the stage needs, and measure all domains."""
        mode: MemoryMode = "off" if key.condition == MEMORY_OFF else self._settings.read_mode
        cache = self._adapted(key)
        found = [tuple(self._measure(tokens, cache, mode) for tokens in domain.held_out) for domain in self._texts]
        return StageRecord(key, tuple(found))

    def _adapted(self, key: StageKey) -> Any:
        """The memory at the end of a stage."""
        if key.stage == 0:
            return self._model.new_cache()
        stage, cache = self._reached.get(key.order, (0, None))
        if cache is None or stage > key.stage:
            stage, cache = 0, self._model.new_cache()
        for number in self._orders[key.order][stage : key.stage]:
            for _ in range(self._settings.adapt_reads):
                for tokens in self._texts[number].adapt:
                    cache = self._read(tokens, cache)
        self._reached[key.order] = key.stage, cache
        return cache

    @torch.inference_mode()
    def _read(self, tokens: np.ndarray, cache: Any) -> Any:
        segment = self._model.call_size(self._settings.segment)
        for begin in range(0, len(tokens), segment):
            self._model.read(tokens[begin : begin + segment], cache, "on")
        return self._model.next_text(cache)

    def _measure(self, tokens: np.ndarray, cache: Any, mode: MemoryMode) -> BlockLosses:
        # Every document has a clone of its own: what one writes is not there for the next.
        losses = document_losses(self._model, tokens, self._model.clone(cache), mode, self._settings.segment)
        return BlockLosses.of(losses, self._settings.block)


def stage_keys(settings: DomainSettings) -> list[StageKey]:
    """What is measured: the control, the initial memory, and the stages; the same stage of all orders together, so
    that several processes share the orders."""
    stages = range(1, len(settings.domains) + 1)
    first = [StageKey(0, 0, MEMORY_OFF), StageKey(0, 0, ADAPTED)]
    return first + [StageKey(order, stage, ADAPTED) for stage in stages for order in range(settings.orders)]
