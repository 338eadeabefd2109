"""One traced sample: the answer, what was recalled and how the slots were used, as a line of samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..trace.answer_trace import AnswerTask, AnswerTrace
from ..trace.slot_statistics import age_histogram
from .slot_recall import SlotRecall, recall_by_head


@dataclass(frozen=True)
class MemoryTraceRecord:
    """One finished sample. Layers are named by their index from 0, as text."""

    index: int
    depth: float | None
    """None for a text of one's own."""
    expected: tuple[int, ...]
    """Tokens of the right answer; empty where it is not known."""
    given: tuple[int, ...]
    recalls: tuple[Mapping[str, Mapping[str, SlotRecall]], ...]
    """For every expected token, by layer, by head: what `recall_by_head` gives."""
    statistics: Mapping[str, Mapping[str, Any]]
    """By layer, how the slots were used by the whole sample (`SlotStatistics.summary`) and by its answer."""
    detail: Mapping[str, Any] | None
    """All about the sample that is shown."""

    @property
    def key(self) -> int:
        """Which sample it is."""
        return self.index

    @property
    def exact(self) -> bool:
        """Whether every token is right."""
        return self.given == self.expected

    @classmethod
    def of(
        cls, index: int, depth: float | None, task: AnswerTask, trace: AnswerTrace, lookahead: int,
        detail: Mapping[str, Any] | None,
    ) -> MemoryTraceRecord:  # fmt: skip
        """The record of a trace."""
        recalls = tuple(
            {str(layer): recall_by_head(read, place - lookahead) for layer, read in token.layers.items()}
            for token, place in zip(trace.tokens, task.places, strict=False)
        )
        statistics = {
            str(layer): {**found, **_of_answer(trace, layer)} for layer, found in sorted(trace.statistics.items())
        }
        return cls(index, depth, task.expected, trace.given, recalls, statistics, detail)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        recalls = [
            {layer: {head: found.to_json() for head, found in heads.items()} for layer, heads in token.items()}
            for token in self.recalls
        ]
        return {
            "index": self.index, "depth": self.depth, "expected": list(self.expected), "given": list(self.given),
            "recalls": recalls, "statistics": self.statistics, "detail": self.detail,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MemoryTraceRecord:
        """The record of a line."""
        recalls = tuple(
            {
                layer: {head: SlotRecall(**found) for head, found in heads.items()} for layer, heads in token.items()
            }
            for token in values["recalls"]
        )  # fmt: skip
        return cls(values["index"], values["depth"], tuple(values["expected"]), tuple(values["given"]), recalls,
                   values["statistics"], values["detail"])  # fmt: skip


def _of_answer(trace: AnswerTrace, layer: int) -> dict[str, Any]:
    """What the answer's tokens read: their gates, how old, how often of a slot with several writers or with none."""
    reads = [token.layers[layer] for token in trace.tokens if layer in token.layers]
    slots = [slot for read in reads for slot in read.slots]
    ages = torch.tensor([slot.age for slot in slots if slot.age])
    count = max(1, len(reads))
    return {
        "answer_gate": sum(read.gate for read in reads) / count,
        "answer_ages": age_histogram(ages).tolist(),
        "answer_reads_of_collided": sum(slot.weight for slot in slots if slot.different_writers > 1) / count,
        "answer_reads_of_unwritten": sum(slot.weight for slot in slots if not slot.writers) / count,
    }
