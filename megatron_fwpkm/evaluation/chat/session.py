"""What a session does: read into memories, ask, keep, copy and forget them, and tell where an answer is from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TextStreamer

from ...hf.cache import FwPKMCache
from ...hf.generation import Sampling, continue_text
from ...hf.modeling_fwpkm import FwPKMForCausalLM
from ..trace.slot_reads import SlotReads, collect_reads, joined, watch_memory
from ..trace.writer_record import FILE_NAME, WriterRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEGMENT = 2048
"""Tokens that are read between two reports of progress."""


@dataclass
class Memory:
    """A memory and the record of what wrote it, None where there is no record."""

    cache: FwPKMCache
    record: WriterRecord | None

    def clone(self) -> Memory:
        """An independent copy."""
        return Memory(self.cache.clone(), None if self.record is None else self.record.clone())


@dataclass(frozen=True)
class TracedAnswer:
    """The last answer: its tokens, what each token of question and answer read, and the writers at that time."""

    ids: list[int]
    reads: dict[int, SlotReads]
    record: WriterRecord | None
    mode: str


class AnswerStreamer(TextStreamer):
    """Prints the answer as it is generated, and keeps the tokens of question and answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.parts: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        """Take the question first, then the answer token by token."""
        self.parts.append(value.detach().reshape(-1).cpu())
        super().put(value)


class Session:
    """A model with memories of which one is current. A call that fails or is interrupted changes none of them.

    Attributes:
        memories: by name; a session begins with an empty one, `main`.
        current: name of the one that is read, asked and changed.
        mode: `on`: questions and answers are written, too; `frozen`: only files are; `off`: answers come from the
            initial memory.
        answer: the last one, or None.
    """

    def __init__(self, model: FwPKMForCausalLM, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.current, self.mode = "main", "frozen"
        self.memories = {self.current: self._new_memory()}
        self.answer: TracedAnswer | None = None

    @property
    def memory(self) -> Memory:
        """The current memory."""
        return self.memories[self.current]

    def read(self, name: str, text: str, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Read a document into the current memory, after what it has read before.

        Args:
            name: how the record of writers calls the document.
            text: of the document.
            progress: is called with the tokens that are read and with all of them.

        Returns:
            The tokens of the document.

        Raises:
            ValueError: the text has no tokens.
        """
        if not self.tokenizer(text, add_special_tokens=False).input_ids:
            raise ValueError(f"{name} is empty")
        ids = self.tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
        new, size = self.memory.clone(), len(ids) if self.model.config.cuts_matter else SEGMENT
        first = 0 if new.record is None else new.record.begin(name, ids)
        with watch_memory(new.cache, first, on_write=None if new.record is None else new.record.add):
            for start in range(0, len(ids), size):
                segment = ids[start : start + size].unsqueeze(0).to(self.model.device)
                with torch.no_grad():
                    self.model.model(input_ids=segment, cache=new.cache, memory="on")
                progress(min(start + size, len(ids)), len(ids))
            new.cache.end_text()
        self.memories[self.current] = new
        return len(ids)

    def ask(self, question: str) -> str:
        """Continue a question with what the current memory holds; the answer is also printed as it is generated.

        Raises:
            ValueError: the question has no tokens.
        """
        new, streamer = self.memory.clone(), AnswerStreamer(self.tokenizer)
        self.model.memory_mode = self.mode
        record = new.record
        first, note = (0, None) if record is None else (len(record.ids), record.add)
        with collect_reads(new.cache, first, note) as found:
            text = continue_text(self.model, self.tokenizer, question, self.sampling, new.cache, streamer)
            new.cache.end_text()
        reads, ids = joined(found), torch.cat(streamer.parts)
        asked = len(streamer.parts[0])
        self.answer = TracedAnswer(ids[asked:].tolist(), _from(reads, asked - 1), self.memory.record, self.mode)
        if self.mode == "on":
            if record is not None:
                record.begin(f"question {question[:30]!r}", ids)
            self.memories[self.current] = new
        return text

    def save(self, folder: str | Path) -> None:
        """Write the current memory and its record of writers into a folder, which is made."""
        self.memory.cache.save_pretrained(folder)
        if self.memory.record is None:
            (Path(folder) / FILE_NAME).unlink(missing_ok=True)  # that of another memory
        else:
            self.memory.record.save(folder)

    def load(self, folder: str | Path) -> None:
        """Put a saved memory in the place of the current one.

        Raises:
            ValueError: it is damaged, or another model wrote it.
        """
        cache = FwPKMCache.from_pretrained(folder, self.model)
        if cache.batch_size != 1:
            raise ValueError(f"{folder} holds the memories of {cache.batch_size} sequences; a session takes one")
        cache.end_text()
        self.memories[self.current] = Memory(cache, WriterRecord.load(folder))

    def fork(self, name: str | None = None) -> str:
        """Make a copy of the current memory, which becomes current; returns its name.

        Raises:
            ValueError: the name is taken.
        """
        name = name or next(new for number in range(1, 10**6) if (new := f"fork{number}") not in self.memories)
        if name in self.memories:
            raise ValueError(f"there is a memory {name} already; /switch {name} goes there")
        self.memories[name] = self.memory.clone()
        self.current = name
        return name

    def switch(self, name: str) -> None:
        """Make another memory current.

        Raises:
            ValueError: there is none of this name.
        """
        if name not in self.memories:
            raise ValueError(f"there is no memory {name!r}; there are {', '.join(self.memories)}")
        self.current = name

    def forget(self) -> None:
        """Put the initial memory in the place of the current one."""
        self.memories[self.current] = self._new_memory()

    def _new_memory(self) -> Memory:
        return Memory(self.model.new_cache(memory="per-sequence"), WriterRecord())


def _from(reads: dict[int, SlotReads], start: int) -> dict[int, SlotReads]:
    """The reads of the tokens that predict an answer: the last one of the question, and the answer but for its end."""
    return {index: layer.cut(start, len(layer.slots)) for index, layer in reads.items()}


def sources_of(answer: TracedAnswer | None, tokenizer: Any, lookahead: int) -> list[str]:
    """Where an answer is from: a line for each of its tokens, with the text that wrote most of what was read for it.

    Args:
        answer: the last one.
        tokenizer: the model's.
        lookahead: a slot holds what stands so many tokens behind the one that wrote it.

    Raises:
        ValueError: there is no answer, or no record of writers.
    """
    if answer is None:
        raise ValueError("nothing has been asked yet")
    if answer.mode == "off":
        raise ValueError("the last answer did not read what was written: the memory was off")
    if answer.record is None:
        raise ValueError("there is no record of what wrote this memory: it was saved without one")
    lines = []
    for place, token in enumerate(answer.ids):
        shown = repr(tokenizer.decode([token]))
        sources = answer.record.sources(answer.reads, place)
        if not sources:
            lines.append(f"{shown:>14}        nothing that was read")
            continue
        writer, share = sources[0]
        name, ids, position = answer.record.text_of(writer)
        where = position + lookahead
        lines.append(f"{shown:>14}  {share:4.0%}  {name}, token {where}: {_passage(tokenizer, ids, where)}")
    return lines


def _passage(tokenizer: Any, ids: Tensor, position: int) -> str:
    """A few words around a token, which stands in brackets."""
    start = max(0, position - 8)
    stops = position, position + 1, position + 5
    before, upto, whole = (str(tokenizer.decode(ids[start:stop], skip_special_tokens=True)) for stop in stops)
    passage = f"{before}[{upto[len(before) :].strip() or ' '}]{whole[len(upto) :]}"
    if upto[len(before) :].startswith((" ", "\n")):
        passage = passage.replace("[", " [", 1)
    return f"... {' '.join(passage.split())} ..."
