"""Loaded models that read streams of documents: everything that a process needs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..block_losses import BlockLosses, document_losses
from ..causality import check_causality
from ..causality_verdict import CausalityCheck
from ..model_loading import LoadedModel
from ..text_model import MemoryMode, TextModel, text_model
from .documents_read import Document, streams
from .gate_sums import collect_gates, gate_sums
from .loss_record import DocumentRecord, StreamKey, StreamRecord
from .perplexity_settings import BASELINE, PerplexitySettings

Loader = Callable[[str, str], LoadedModel]
"""Model folder and device to a loaded model; a top-level function, since every process calls it."""


class StreamReader:
    """The models, the documents, and the texts that their memories read first."""

    def __init__(
        self, settings: PerplexitySettings, documents: Sequence[Document], read_first: Sequence[np.ndarray],
        loader: Loader, device: str,
    ) -> None:  # fmt: skip
        """Loads the model; a baseline is loaded when it is first needed."""
        self.documents = list(documents)
        self._settings, self._read_first, self._loader, self._device = settings, read_first, loader, device
        self.loaded = loader(settings.model, device)
        self._model = text_model(self.loaded.model)
        self._baseline: LoadedModel | None = None
        self._streams = streams(self.documents, settings.memory_reset)
        self._starts: dict[bool, Any] = {}

    @property
    def has_memory(self) -> bool:
        """Whether the model has a fast-weight memory."""
        return self._model.has_memory

    def keys(self) -> list[StreamKey]:
        """All that is to be read."""
        conditions = self._settings.conditions(self.has_memory)
        return [StreamKey(stream, condition) for stream in range(len(self._streams)) for condition in conditions]

    def run(self, key: StreamKey) -> StreamRecord:
        """Read a stream."""
        begin = time.monotonic()
        model = self._model if key.condition != BASELINE else text_model(self._load_baseline().model)
        found = self._read_stream(model, [self.documents[number] for number in self._streams[key.stream]], key)
        return StreamRecord(key, tuple(found), round(time.monotonic() - begin, 4))

    def identity(self) -> dict[str, object]:
        """What must be equal for records to belong together; where files lie does not matter, what is in them does."""
        text = hashlib.blake2b(digest_size=16)
        for number, tokens in enumerate((*self._read_first, *(document.tokens for document in self.documents))):
            text.update((b"first|" if number < len(self._read_first) else b"") + tokens.tobytes() + b"|")
        found = {**self._settings.decides_a_record(), **self.loaded.identity(), "text": text.hexdigest()}
        found["streams"] = len(self._streams)
        if self._settings.baseline is not None:
            found["baseline"] = self._load_baseline().weights_digest()
        return found

    def causality(self) -> CausalityCheck:
        """The check on the beginning of the longest document."""
        longest = max(self.documents, key=lambda document: len(document.tokens))
        return check_causality(self._model, longest.tokens, self.loaded.tokenizer.vocab_size)

    def _read_stream(self, model: TextModel, documents: list[Document], key: StreamKey) -> list[DocumentRecord]:
        """What is measured of documents that are read one after the other; between two of them attention forgets."""
        carried = self._settings.memory_reset == "never"
        cache, found = self._start(model, key.condition), list[DocumentRecord]()
        for number, document in enumerate(documents):
            if number and not carried:
                cache = self._start(model, key.condition)
            if key.condition == "frozen":
                found.append(self._read(model, document, model.clone(cache), "frozen"))
                if not carried or number + 1 == len(documents):
                    continue
                self._write(model, document.tokens, cache)
            else:
                found.append(self._read(model, document, cache, "off" if key.condition == "off" else "on"))
            if carried:
                cache = model.next_text(cache)
        return found

    def _read(self, model: TextModel, document: Document, cache: Any, mode: MemoryMode) -> DocumentRecord:
        with collect_gates(model.model) as gates:
            losses = document_losses(model, document.tokens, cache, mode, self._settings.segment)
        return DocumentRecord(BlockLosses.of(losses, self._settings.block), gate_sums(gates, self._settings.block))

    def _start(self, model: TextModel, condition: str) -> Any:
        """The cache that a stream, or a document, begins with; None for a document that is read in one call."""
        if self._settings.reading == "training":
            return None
        if not self._read_first or condition == "off" or not model.has_memory:
            return model.new_cache()
        ours = model.model is self.loaded.model
        if ours not in self._starts:
            cache = model.new_cache()
            for tokens in self._read_first:
                self._write(model, tokens, cache)
                cache = model.next_text(cache)
            self._starts[ours] = cache
        return model.clone(self._starts[ours])

    @torch.inference_mode()
    def _write(self, model: TextModel, tokens: np.ndarray, cache: Any) -> None:
        segment = model.call_size(self._settings.segment)
        for begin in range(0, len(tokens), segment):
            model.read(tokens[begin : begin + segment], cache, "on")

    def _load_baseline(self) -> LoadedModel:
        assert self._settings.baseline is not None
        if self._baseline is None:
            self._baseline = self._loader(self._settings.baseline, self._device)
        return self._baseline


def make_stream_reader(
    settings: PerplexitySettings, documents: Sequence[Document], read_first: Sequence[np.ndarray], loader: Loader,
    device: str,
) -> Callable[[StreamKey], StreamRecord]:  # fmt: skip
    """What a worker process does with a stream."""
    return StreamReader(settings, documents, read_first, loader, device).run
