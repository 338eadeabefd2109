"""Traces of several samples together: recall@slot, how it goes with right answers, and how the slots were used."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from ..causality import CausalityCheck
from ..confidence import wilson_interval
from ..result_files import json_text, rounded
from .memory_trace_record import MemoryTraceRecord
from .memory_trace_settings import MemoryTraceSettings

_MEANS = (
    "written", "read", "collided", "reads_of_collided", "kl_to_uniform", "answer_gate", "answer_reads_of_collided",
    "answer_reads_of_unwritten",
)  # fmt: skip
FEW = 4
"""The slots of recall@4."""
SHARE_BORDERS = (0.25, 0.5, 0.75)
"""Where shares of the right token are parted."""


@dataclass(frozen=True)
class Fraction:
    """How many of several, with the Wilson 95 % interval."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """nan without any."""
        return self.count / self.total if self.total else float("nan")

    def __str__(self) -> str:
        """For people."""
        if not self.total:
            return "none"
        low, high = wilson_interval(self.count, self.total)
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}] of {self.total}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        low, high = wilson_interval(self.count, self.total) if self.total else (0.0, 1.0)
        return rounded({"value": self.value, "low": low, "high": high, "of": self.total})


@dataclass(frozen=True)
class MemoryTraceResults:
    """All samples of a trace, in order; the first is shown in full."""

    settings: MemoryTraceSettings
    model_name: str
    records: tuple[MemoryTraceRecord, ...]
    causality: CausalityCheck
    provenance: dict[str, str] = field(compare=False)

    @property
    def detail(self) -> dict[str, Any]:
        """Of the sample that is shown."""
        found = self.records[0].detail
        assert found is not None
        return dict(found)

    @property
    def layers(self) -> tuple[str, ...]:
        """Traced layers by their index from 0, as text."""
        return tuple(self.records[0].statistics)

    @property
    def knows_answers(self) -> bool:
        """Whether the right answers are known."""
        return bool(self.records[0].expected)

    def heads(self, layer: str) -> tuple[str, ...]:
        """`all`, and every head where there are several; none where no right answer is known."""
        return tuple(self.records[0].recalls[0].get(layer, {})) if self.records[0].recalls else ()

    def exact(self) -> Fraction:
        """Answers with every token right."""
        return Fraction(sum(record.exact for record in self.records), len(self.records))

    def recall(self, layer: str, head: str, slots: int | None) -> Fraction:
        """recall@slot over all answer tokens: the right token wrote one of so many heaviest slots (None: of all)."""
        ranks = [token[layer][head].rank for record in self.records for token in record.recalls]
        return Fraction(sum(0 < rank and (slots is None or rank <= slots) for rank in ranks), len(ranks))

    def right_share(self, layer: str, head: str) -> float:
        """Mean share of a read that is attributed to the right token."""
        shares = [token[layer][head].share for record in self.records for token in record.recalls]
        return sum(shares) / max(1, len(shares))

    def right_tokens(self, layer: str, *, found: bool) -> Fraction:
        """Answer tokens that are right, among those whose heaviest slot the right token wrote, or did not write."""
        rights = [
            given == expected
            for record in self.records
            for given, expected, token in zip(record.given, record.expected, record.recalls, strict=True)
            if token[layer]["all"].found_within(1) == found
        ]
        return Fraction(sum(rights), len(rights))

    def right_answers(self, layer: str, *, found: bool) -> Fraction:
        """Exact answers among the samples in which all tokens found the right slot first, or in which some did not."""
        rights = [
            record.exact
            for record in self.records
            if all(token[layer]["all"].found_within(1) for token in record.recalls) == found
        ]
        return Fraction(sum(rights), len(rights))

    def right_by_share(self, layer: str) -> list[Fraction]:
        """Answer tokens that are right, by the share of their read that is attributed to the right token.

        Returns:
            One fraction for each of the parts of [0, 1] between SHARE_BORDERS.
        """
        rights: list[list[bool]] = [[] for _ in range(len(SHARE_BORDERS) + 1)]
        for record in self.records:
            for given, expected, token in zip(record.given, record.expected, record.recalls, strict=True):
                rights[bisect_right(SHARE_BORDERS, token[layer]["all"].share)].append(given == expected)
        return [Fraction(sum(part), len(part)) for part in rights]

    def mean(self, layer: str, name: str) -> float:
        """Mean of a number of the statistics over the samples."""
        return sum(record.statistics[layer][name] for record in self.records) / len(self.records)

    def histogram(self, layer: str, name: str) -> list[int]:
        """Sum of a histogram over the samples."""
        return [sum(bins) for bins in zip(*(record.statistics[layer][name] for record in self.records), strict=True)]

    def summary(self) -> dict[str, Any]:
        """Plain values of all of it, by layer."""
        found: dict[str, Any] = {"samples": len(self.records)}
        if self.knows_answers:
            found["exact_match"] = self.exact().to_json()
        found["layers"] = {layer: self._layer(layer) for layer in self.layers}
        return found

    def _layer(self, layer: str) -> dict[str, Any]:
        by_head = [record.statistics[layer]["kl_to_uniform_by_head"] for record in self.records]
        found: dict[str, Any] = rounded({name: self.mean(layer, name) for name in _MEANS})
        found["kl_to_uniform_by_head"] = [round(sum(head) / len(head), 6) for head in zip(*by_head, strict=True)]
        found |= {name: self.histogram(layer, name) for name in ("ages", "answer_ages")}
        if self.knows_answers:
            found["recall"] = {
                head: {
                    "at_1": self.recall(layer, head, 1).to_json(),
                    f"at_{FEW}": self.recall(layer, head, FEW).to_json(),
                    "at_all": self.recall(layer, head, None).to_json(),
                    "share": round(self.right_share(layer, head), 6),
                }
                for head in self.heads(layer)
            }
            found["right"] = {
                "tokens_found": self.right_tokens(layer, found=True).to_json(),
                "tokens_not_found": self.right_tokens(layer, found=False).to_json(),
                "answers_found": self.right_answers(layer, found=True).to_json(),
                "answers_not_found": self.right_answers(layer, found=False).to_json(),
                "tokens_by_share": [part.to_json() for part in self.right_by_share(layer)],
            }
        return found

    def to_json(self) -> str:
        """trace.json: the summary, and the sample that is shown in full."""
        shown = {"index": self.records[0].index, "depth": self.records[0].depth, **self.detail}
        settings = {name: value for name, value in self.settings.decides_a_trace().items()}
        return json_text({"model": self.model_name, "settings": settings, "summary": self.summary(), "shown": shown})
