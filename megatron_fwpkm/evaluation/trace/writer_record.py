"""Which tokens of which texts wrote the slots of a memory: kept while texts are read, saved beside the memory."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .slot_reads import SlotReads, SlotWrites

FILE_NAME = "fwpkm_writers.safetensors"
FORMAT = "fwpkm-writers-2"
WRITERS_PER_SLOT = 8
"""How many of the last writers of a slot are kept: a record has at most so many entries for every slot of a memory,
however long the texts are."""
_MOST_UNSORTED = 1 << 16
"""Entries that are collected before they are sorted into the others."""


class SlotWriter(NamedTuple):
    """A token that wrote a slot."""

    token: int
    """Its number among all that were read."""
    write: int
    """Which write of the layer it was, from 0: the number of the chunk."""
    share: float
    """How much of what its last writers have left in the slot is the token's; the shares of a slot add up to 1."""


class Writers(NamedTuple):
    """The last writers of the slots of one layer: E entries, ordered by slot and then by time."""

    slots: Tensor
    """int64 [E], ascending."""
    tokens: Tensor
    """int64 [E], numbers of the tokens among all that were read."""
    weights: Tensor
    """float32 [E], how far the write moved the slot: 1 is all the way to what was written."""
    writes: Tensor
    """int64 [E], which write of the layer it was, from 0."""

    @staticmethod
    def none() -> Writers:
        """No slot has been written."""
        number = torch.empty(0, dtype=torch.int64)
        return Writers(number, number, torch.empty(0), number)

    def followed_by(self, later: list[Writers]) -> Writers:
        """These and later ones, of which the last few of every slot stay."""
        after = Writers(*map(torch.cat, zip(self, *later, strict=True)))
        order = after.slots.sort(stable=True).indices
        after = Writers(*(field[order] for field in after))
        places = torch.arange(len(after.slots))
        behind = torch.searchsorted(after.slots, after.slots, right=True)  # the place after the last of the same slot
        return Writers(*(field[behind - places <= WRITERS_PER_SLOT] for field in after))

    def of(self, slot: int) -> list[SlotWriter]:
        """The last writers of a slot, oldest first; those whose number is not known (-1) are left out.

        A write that moves a slot by the fraction w leaves 1 - w of what was there before. The shares follow from that;
        they are an estimate, for a write moves a slot towards its target by the error of the whole read.
        """
        first = int(torch.searchsorted(self.slots, slot))
        last = int(torch.searchsorted(self.slots, slot, right=True))
        tokens, weights, writes = (field[first:last].tolist() for field in self[1:])
        left, rest, kept = 1.0, 1.0, list[float]()
        for place in reversed(range(len(tokens))):
            if place + 1 < len(tokens) and writes[place] != writes[place + 1]:
                left, rest = left * max(rest, 0.0), 1.0
            kept.append(left * weights[place])
            rest -= weights[place]
        total = sum(kept) or 1.0
        found = zip(tokens, writes, reversed(kept), strict=True)
        return [SlotWriter(token, write, part / total) for token, write, part in found if token >= 0]


class WriterRecord:
    """The texts that were read into a memory, and the last writers of its slots.

    Attributes:
        names: of the texts, in the order of reading.
        starts: number of the first token of every text, among all tokens that were read.
        ids: int64 [N], all these tokens.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.starts: list[int] = []
        self.ids = torch.empty(0, dtype=torch.int64)
        self._layers: dict[int, Writers] = {}
        self._unsorted: dict[int, list[Writers]] = defaultdict(list)
        self._writes: dict[int, int] = defaultdict(int)

    def clone(self) -> WriterRecord:
        """An independent copy; the tensors, which are never written, belong to both."""
        twin = WriterRecord()
        twin.names, twin.starts, twin.ids = list(self.names), list(self.starts), self.ids
        twin._layers, twin._writes = dict(self.layers), self._writes.copy()
        return twin

    @property
    def layers(self) -> dict[int, Writers]:
        """The writers by layer index from 0."""
        for layer in list(self._unsorted):
            self._sort(layer)
        return self._layers

    def begin(self, name: str, ids: Tensor) -> int:
        """Add a text with its tokens [T]; returns the number of its first one."""
        first = len(self.ids)
        self.names.append(name)
        self.starts.append(first)
        self.ids = torch.cat([self.ids, ids.cpu()])
        return first

    def add(self, layer: int, written: SlotWrites) -> None:
        """Note one write; a token that wrote a slot with several heads is one writer of it."""
        number = self._writes[layer]
        self._writes[layer] += 1
        count = len(written.tokens)
        places = torch.arange(count).unsqueeze(1)
        pairs, where = (written.slots.flatten(1) * count + places).flatten().unique(return_inverse=True)
        weights = torch.zeros(len(pairs)).index_add_(0, where, written.steps.flatten())
        tokens = written.tokens[pairs % count]
        self._unsorted[layer].append(Writers(pairs // count, tokens, weights, torch.full_like(tokens, number)))
        if sum(len(entry.slots) for entry in self._unsorted[layer]) > _MOST_UNSORTED:
            self._sort(layer)

    def _sort(self, layer: int) -> None:
        self._layers[layer] = self._layers.get(layer, Writers.none()).followed_by(self._unsorted.pop(layer))

    def of(self, layer: int, slot: int) -> list[SlotWriter]:
        """The last writers of a slot so far, oldest first."""
        if layer in self._unsorted:
            self._sort(layer)
        return self._layers[layer].of(slot) if layer in self._layers else []

    def sources(self, reads: Mapping[int, SlotReads], place: int) -> list[tuple[int, float]]:
        """Who wrote what one token reads, the heaviest first.

        Args:
            reads: what several tokens read, by layer.
            place: which of them.

        Returns:
            (number of a token that was read earlier, share of the read that is attributed to it). The weight of a slot
            is divided among its last writers by their shares; the result adds up to less than 1 where slots were
            never written.
        """
        shares: dict[int, float] = defaultdict(float)
        for layer, (slots, weights, _) in reads.items():
            read = zip(slots[place].flatten().tolist(), weights[place].flatten().tolist(), strict=True)
            for slot, weight in read:
                for writer in self.of(layer, slot):
                    shares[writer.token] += weight * writer.share / len(reads)
        return sorted(((token, share) for token, share in shares.items() if share), key=lambda entry: -entry[1])

    def text_of(self, token: int) -> tuple[str, Tensor, int]:
        """The name and the tokens of the text of a token, given by its number, and its place there from 0."""
        text = bisect_right(self.starts, token) - 1
        start = self.starts[text]
        stop = self.starts[text + 1] if text + 1 < len(self.starts) else len(self.ids)
        return self.names[text], self.ids[start:stop], token - start

    def save(self, folder: str | Path) -> None:
        """Write the record as one safetensors file into a folder, which is made; `load` reads it."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        tensors = {"ids": self.ids, "starts": torch.tensor(self.starts, dtype=torch.int64)}
        for index, writers in self.layers.items():
            tensors |= {f"layers.{index}.{name}": field for name, field in writers._asdict().items()}
        save_file(tensors, Path(folder) / FILE_NAME, {"format": FORMAT, "names": json.dumps(self.names)})

    @staticmethod
    def load(folder: str | Path) -> WriterRecord | None:
        """Read what `save` has written; None where there is no such file.

        Raises:
            ValueError: the file is damaged.
        """
        path = Path(folder) / FILE_NAME
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
                return _checked(json.loads(metadata["names"]), {name: file.get_tensor(name) for name in file.keys()})
        except (SafetensorError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a record of writers: {error}") from error


def _checked(names: list[str], tensors: dict[str, Tensor]) -> WriterRecord:
    """The record of a file, whose numbers lie where `WriterRecord` expects them; ValueError otherwise."""
    record = WriterRecord()
    record.names, record.ids, starts = names, tensors.pop("ids"), tensors.pop("starts")
    for name, x in {"ids": record.ids, "starts": starts, **tensors}.items():
        dtype = torch.float32 if name.endswith(".weights") else torch.int64
        if x.dtype != dtype or x.ndim != 1:
            raise ValueError(f"{name} must be {dtype} of one dimension, got {x.dtype} {list(x.shape)}")
    record.starts, count = starts.tolist(), len(record.ids)
    ordered = record.starts == sorted(record.starts) and record.starts[:1] in ([], [0])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the names of the texts are no list of names")
    if not ordered or len(names) != len(starts) or any(start > count for start in record.starts):
        raise ValueError(f"{len(names)} texts with {count} tokens cannot begin at {record.starts[:5]}")
    for index in {int(name.split(".")[1]) for name in tensors}:
        writers = Writers(*(tensors[f"layers.{index}.{name}"] for name in Writers._fields))
        if len({len(field) for field in writers}) > 1 or bool((writers.slots.diff() < 0).any()):
            raise ValueError(f"the writers of layer {index} are not in order")
        if len(writers.tokens) and not -1 <= int(writers.tokens.min()) <= int(writers.tokens.max()) < count:
            raise ValueError(f"the writers of layer {index} are no tokens that were read")
        record._layers[index] = writers
        record._writes[index] = int(writers.writes.max()) + 1 if len(writers.writes) else 0
    return record
