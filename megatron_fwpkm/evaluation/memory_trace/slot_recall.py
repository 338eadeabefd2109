"""Whether the slots that an answer token reads are those that the right token of the text wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..trace.answer_trace import LayerRead, SlotRead


@dataclass(frozen=True)
class SlotRecall:
    """How well one answer token found its fact, in one layer and one head or all."""

    rank: int
    """Rank from 1 of the heaviest slot that the right token wrote, among those read; 0 where none is."""
    share: float
    """Share of the read that is attributed to the right token, rounded as in the log, from which runs continue."""

    @classmethod
    def of(cls, slots: Sequence[SlotRead], position: int) -> SlotRecall:
        """From slots, heaviest first, and the position of the token that wrote what is asked for.

        The share is of the weights of these slots: of all heads, or of one.
        """
        held = [any(source.position == position for source in slot.writers) for slot in slots]
        total = sum(slot.weight for slot in slots) or 1.0
        share = sum(
            slot.weight * source.share / total
            for slot in slots for source in slot.writers if source.position == position
        )  # fmt: skip
        return cls(held.index(True) + 1 if any(held) else 0, round(share, 6))

    def found_within(self, slots: int) -> bool:
        """recall@slot: whether the right token wrote one of so many heaviest slots."""
        return 0 < self.rank <= slots

    def to_json(self) -> dict[str, Any]:
        """Plain values, the keyword arguments of a twin."""
        return {"rank": self.rank, "share": self.share}


def recall_by_head(read: LayerRead, position: int) -> dict[str, SlotRecall]:
    """Of all heads together (`all`), and of every head by its number from 0 where there are several."""
    heads = sorted({slot.head for slot in read.slots})
    found = {"all": SlotRecall.of(read.slots, position)}
    if len(heads) > 1:
        for head in heads:
            found[str(head)] = SlotRecall.of([slot for slot in read.slots if slot.head == head], position)
    return found
