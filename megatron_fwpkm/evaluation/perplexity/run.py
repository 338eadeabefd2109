"""Perplexity, from settings to a report: every document in every condition, resumed where it stopped."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ...data.tokenizers import Tokenizer
from ..causality import CausalityCheck, check_causality
from ..item_runner import RunOptions, check_run, measure_items, open_log
from ..model_loading import LoadedModel, ModelFacts, inspect_model, load_model
from ..provenance import provenance
from ..report_page import name_of_model, write_report
from ..result_files import run_json, write_atomically
from ..text_files import check_text_files
from ..text_model import MemoryMode, text_model
from .documents_read import FLAG, Document, load_documents, read_stream
from .loss_picture import draw_losses
from .loss_record import StreamKey, StreamRecord
from .loss_table import PerplexityResults, tabulate_losses
from .perplexity_report import losses_part
from .perplexity_settings import BASELINE, NO_MEMORY, PerplexitySettings

Loader = Callable[[str, str], LoadedModel]
"""Model folder and device to a loaded model; a top-level function, since every process calls it."""
_CAUSALITY_TOKENS = 256


def check_perplexity_places(settings: PerplexitySettings, output: Path, workers: int) -> None:
    """Raise ValueError for an invalid model folder, text file, output folder or number of processes."""
    check_run(settings.model, output, workers)
    if settings.baseline is not None and not Path(settings.baseline).is_dir():
        raise ValueError(f"--baseline {settings.baseline} is not a folder")
    check_text_files(FLAG, settings.text)


def measure_perplexity(
    settings: PerplexitySettings, options: RunOptions, loader: Loader = load_model
) -> PerplexityResults:
    """Measure, or continue measuring, and write all outputs. Invalid input is refused before weights are loaded.

    Args:
        settings: what to measure.
        options: how to run.
        loader: gives a model.

    Raises:
        ValueError: anything a user can fix: model, text, output folder of a different evaluation.
    """
    check_perplexity_places(settings, options.output, options.workers)
    facts = inspect_model(settings.model, options.device)
    documents = load_documents(settings, facts.tokenizer, facts.bos)
    _check_models(settings, facts, documents, options.device)
    reader = StreamReader(settings, documents, loader, options.device)
    conditions = settings.conditions(reader.has_memory)
    if not reader.has_memory:
        print(f"--model {settings.model} has no fast-weight memory: measured as {NO_MEMORY!r}", file=sys.stderr)
    log = open_log(options, reader.identity(), StreamRecord.from_json)
    causality = reader.causality()
    streams = len(documents) if settings.memory_reset == "document" else 1
    records = measure_items(
        [StreamKey(stream, condition) for stream in range(streams) for condition in conditions], log, reader.run,
        lambda measured: measured[-1].key.condition, workers=options.workers, make_worker=make_stream_reader,
        arguments=(settings, documents, loader, options.device),
    )  # fmt: skip
    results = _results(settings, options, conditions, reader, records, causality)
    write_atomically(options.output / "results.json", results.to_json())
    write_atomically(options.output / "results.csv", results.to_csv())
    write_atomically(options.output / "run.json", run_json(results.provenance, results.tokens_per_second))
    write_atomically(options.output / "losses.png", draw_losses(results))
    write_report(losses_part(results), options.output)
    return results


class StreamReader:
    """The loaded models and the documents: everything a process needs to read a stream."""

    def __init__(
        self, settings: PerplexitySettings, documents: Sequence[Document], loader: Loader, device: str
    ) -> None:
        """Loads the model; a baseline is loaded when it is first needed."""
        self.documents = documents
        self._settings, self._loader, self._device = settings, loader, device
        self.loaded = loader(settings.model, device)
        self._model = text_model(self.loaded.model)
        self._baseline: LoadedModel | None = None

    @property
    def has_memory(self) -> bool:
        """Whether the model has a fast-weight memory."""
        return self._model.has_memory

    def run(self, key: StreamKey) -> StreamRecord:
        """Read a stream."""
        settings, begin = self._settings, time.monotonic()
        chosen = self.documents[key.stream : key.stream + 1]
        if settings.memory_reset == "never":
            chosen = self.documents
        model = self._model if key.condition != BASELINE else text_model(self._load_baseline().model)
        mode: MemoryMode = "off" if key.condition == "off" else "on"
        found = read_stream(model, chosen, mode, settings.segment, settings.block)
        return StreamRecord(key, tuple(found), round(time.monotonic() - begin, 4))

    def identity(self) -> dict[str, object]:
        """What must be equal for records to belong together; where files lie does not matter, what is in them does."""
        text = hashlib.blake2b(digest_size=16)
        for document in self.documents:
            text.update(document.tokens.tobytes() + b"|")
        found = {**self._settings.decides_a_record(), **self.loaded.identity(), "text": text.hexdigest()}
        if self._settings.baseline is not None:
            found["baseline"] = self._load_baseline().weights_digest()
        return found

    def causality(self) -> CausalityCheck:
        """The check on the beginning of the first document."""
        tokens = self.documents[0].tokens[:_CAUSALITY_TOKENS]
        return check_causality(self._model, tokens, self.loaded.tokenizer.vocab_size)

    def _load_baseline(self) -> LoadedModel:
        assert self._settings.baseline is not None
        if self._baseline is None:
            self._baseline = self._loader(self._settings.baseline, self._device)
        return self._baseline


def make_stream_reader(
    settings: PerplexitySettings, documents: Sequence[Document], loader: Loader, device: str
) -> Callable[[StreamKey], StreamRecord]:
    """What a worker process does with a stream."""
    return StreamReader(settings, documents, loader, device).run


def _check_models(
    settings: PerplexitySettings, facts: ModelFacts, documents: Sequence[Document], device: str
) -> None:
    """Both models read the same tokens, and all of them."""
    longest = max(len(document.tokens) for document in documents)
    positions = [("--model", settings.model, facts.positions)]
    if settings.baseline is not None:
        other = inspect_model(settings.baseline, device)
        _check_tokenizers(settings, facts.tokenizer, other.tokenizer)
        if other.bos != facts.bos:
            raise ValueError(
                f"--baseline {settings.baseline} begins documents {_beginning(other)} and --model {settings.model} "
                f"{_beginning(facts)}: their losses are not of the same tokens"
            )
        positions.append(("--baseline", settings.baseline, other.positions))
    for flag, folder, most in positions:
        if most is not None and longest > most:
            raise ValueError(
                f"a document has {longest:,} tokens to read, but {flag} {folder} has only {most:,} learned "
                f"position embeddings; use --length {most} or less"
            )


def _beginning(facts: ModelFacts) -> str:
    return "without a token for it" if facts.bos is None else "with BOS"


def _check_tokenizers(settings: PerplexitySettings, one: Tokenizer, other: Tokenizer) -> None:
    if one.identity != other.identity:
        raise ValueError(
            f"--baseline {settings.baseline} has another tokenizer than --model {settings.model}; losses per token can "
            "be compared only with the same one (measure each alone, and compare the bits per byte)"
        )


def _results(
    settings: PerplexitySettings, options: RunOptions, conditions: Sequence[str], reader: StreamReader,
    records: Sequence[StreamRecord], causality: CausalityCheck,
) -> PerplexityResults:  # fmt: skip
    predicted = sum(len(document.tokens) - 1 for document in reader.documents)
    speeds = {
        name: predicted / max(1e-9, sum(record.seconds for record in records if record.key.condition == name))
        for name in conditions
    }
    return PerplexityResults(
        settings, options.model_name or name_of_model(settings.model), tuple(conditions),
        tabulate_losses(settings, conditions, records),
        sum(document.num_bytes for document in reader.documents) / predicted, speeds, causality,
        provenance(options.command),
        {name: value for name, value in reader.loaded.model.config.to_dict().items() if value is not None},
    )  # fmt: skip
