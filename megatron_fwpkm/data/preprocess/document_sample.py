"""Some documents of a corpus, the same ones in every run, drawn while it is encoded. Free of torch."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..corpus.records import Block


class SampledDocument(NamedTuple):
    """A document that --verify may read back.

    Attributes:
        draw: a number from [0, 1) drawn for the document; the smallest of all are read back. Below 0 where the document
            stands for a whole file.
        dataset: the dataset it is in, by its number among those of the run.
        number: its number in that dataset.
        text: what was encoded.
    """

    draw: float
    dataset: int
    number: int
    text: str


def draw_documents(block: Block, texts: Sequence[Sequence[str]], most: int) -> tuple[SampledDocument, ...]:
    """Of the documents of a block, `texts` by dataset, the one with the smallest draw of each dataset, and of the
    others at most `most` that draw less than `block.sample_below`. The draws depend on the place of the block only."""
    rng = np.random.default_rng([block.file_number, block.end.position, block.first_line])
    first, others = list[SampledDocument](), list[SampledDocument]()
    for dataset, documents in enumerate(texts):
        draws = rng.random(len(documents))
        if not len(draws):
            continue
        smallest = int(draws.argmin())
        for number in np.flatnonzero(draws < block.sample_below).tolist():
            if number != smallest:
                others.append(SampledDocument(float(draws[number]), dataset, number, documents[number]))
        first.append(SampledDocument(float(draws[smallest]), dataset, smallest, documents[smallest]))
    return (*first, *heapq.nsmallest(most, others))


class DocumentSample:
    """Exactly `size` of the documents offered, or all where there are fewer: the same ones in every run. They are drawn
    from all datasets and all files, at least one of each file where there are not more files than `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._documents: list[SampledDocument] = []
        self._last_file: dict[int, int] = {}
        """By dataset: the last file that gave a document."""

    @property
    def documents(self) -> list[SampledDocument]:
        """What was chosen of what has been offered so far, by dataset and number."""
        return sorted(self._documents, key=lambda document: (document.dataset, document.number))

    @property
    def below(self) -> float:
        """Documents that draw this number or more will not be chosen any more."""
        return self._documents[-1].draw if len(self._documents) >= self._size > 0 else float("inf")

    def offer(self, file_number: int, found: Sequence[SampledDocument], before: Sequence[int]) -> None:
        """What `draw_documents` gave for a block of a file; `before` are the documents in front of it by dataset."""
        for document in found:
            draw = document.draw
            if self._last_file.get(document.dataset, -1) < file_number:  # the smallest draws stand in front
                self._last_file[document.dataset] = file_number
                draw -= 1.0
            number = before[document.dataset] + document.number
            self._documents.append(document._replace(draw=draw, number=number))
        if found:
            self._documents = sorted(self._documents)[: self._size]

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on, as plain values."""
        return {"size": self._size, "documents": self._documents, "last_file": list(self._last_file.items())}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier run's state. Raises ValueError where that run kept fewer documents."""
        if state["size"] < self._size:
            raise ValueError(
                f"--verify {self._size} is larger than --verify {state['size']} of the interrupted run, which kept no "
                f"more documents; use {state['size']}, or start over with --overwrite"
            )
        self._documents = [SampledDocument(*document) for document in state["documents"]][: self._size]
        self._last_file = {dataset: number for dataset, number in state["last_file"]}
