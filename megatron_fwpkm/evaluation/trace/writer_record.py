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

from .slot_reads import SlotReads

FILE_NAME = "fwpkm_writers.safetensors"
FORMAT = "fwpkm-writers-1"
WRITERS_PER_SLOT = 4
"""How many of the last writers of a slot are kept."""


class Writers(NamedTuple):
    """The last writers of the slots of one layer: E entries, ordered by slot and then by time."""

    slots: Tensor
    """int64 [E], ascending."""
    tokens: Tensor
    """int64 [E], numbers of the tokens among all that were read."""
    weights: Tensor
    """float32 [E], slot weight times gate."""

    @staticmethod
    def none() -> Writers:
        """No slot has been written."""
        return Writers(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0))

    def followed_by(self, slots: Tensor, tokens: Tensor, weights: Tensor) -> Writers:
        """These and later ones, of which the last few of every slot stay."""
        after = Writers(*(torch.cat(pair) for pair in zip(self, (slots, tokens, weights), strict=True)))
        order = after.slots.sort(stable=True).indices
        after = Writers(*(field[order] for field in after))
        places = torch.arange(len(after.slots))
        behind = torch.searchsorted(after.slots, after.slots, right=True)  # the place after the last of the same slot
        return Writers(*(field[behind - places <= WRITERS_PER_SLOT] for field in after))

    def of(self, slot: int) -> list[tuple[int, float]]:
        """(token, weight) of the last writers of a slot, oldest first."""
        first = int(torch.searchsorted(self.slots, slot))
        last = int(torch.searchsorted(self.slots, slot, right=True))
        return list(zip(self.tokens[first:last].tolist(), self.weights[first:last].tolist(), strict=True))


class WriterRecord:
    """The texts that were read into a memory, and the last writers of its slots.

    Attributes:
        names: of the texts, in the order of reading.
        starts: number of the first token of every text, among all tokens that were read.
        ids: int64 [N], all these tokens.
        layers: the writers by layer index from 0.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.starts: list[int] = []
        self.ids = torch.empty(0, dtype=torch.int64)
        self.layers: dict[int, Writers] = {}

    def clone(self) -> WriterRecord:
        """An independent copy; the tensors, which are never written, belong to both."""
        twin = WriterRecord()
        twin.names, twin.starts = list(self.names), list(self.starts)
        twin.ids, twin.layers = self.ids, dict(self.layers)
        return twin

    def begin(self, name: str, ids: Tensor) -> int:
        """Add a text with its tokens [T]; returns the number of its first one."""
        first = len(self.ids)
        self.names.append(name)
        self.starts.append(first)
        self.ids = torch.cat([self.ids, ids.cpu()])
        return first

    def add(self, first: int, reads: Mapping[int, SlotReads]) -> None:
        """Note that the tokens from number `first` on were written into the slots which they read."""
        for index, (slots, weights, strengths) in reads.items():
            tokens = torch.arange(first, first + len(slots)).unsqueeze(1).expand_as(slots)
            written = weights * strengths.unsqueeze(1)
            before = self.layers.get(index, Writers.none())
            self.layers[index] = before.followed_by(slots.flatten(), tokens.flatten(), written.flatten())

    def sources(self, reads: Mapping[int, SlotReads], place: int) -> list[tuple[int, float]]:
        """Who wrote what one token reads, the heaviest first.

        Args:
            reads: what several tokens read, by layer.
            place: which of them.

        Returns:
            (number of a token that was read earlier, share of the read that is attributed to it). The weight of a slot
            is divided among its last writers by their weights; the shares add up to less than 1 where slots were
            never written.
        """
        shares: dict[int, float] = defaultdict(float)
        for index, (slots, weights, _) in reads.items():
            writers = self.layers.get(index, Writers.none())
            for slot, weight in zip(slots[place].tolist(), weights[place].tolist(), strict=True):
                known = writers.of(slot)
                total = sum(written for _, written in known)
                for token, written in known if total else []:
                    shares[token] += weight * written / total / len(reads)
        return sorted(shares.items(), key=lambda entry: -entry[1])

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
        if len(writers.tokens) and not 0 <= int(writers.tokens.min()) <= int(writers.tokens.max()) < count:
            raise ValueError(f"the writers of layer {index} are no tokens that were read")
        record.layers[index] = writers
    return record
