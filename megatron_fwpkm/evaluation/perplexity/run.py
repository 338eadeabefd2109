"""Perplexity, from settings to a report: every document in every condition, resumed where it stopped."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ...data.tokenizers import Tokenizer
from ..causality_verdict import CausalityCheck
from ..item_runner import RunOptions, check_run, measure_items, open_log
from ..model_loading import ModelFacts, inspect_model, load_model
from ..provenance import provenance
from ..report_page import name_of_model, write_report
from ..result_files import run_json, write_atomically
from ..text_files import check_text_files
from .document_table import tabulate_documents
from .documents_read import FIRST_FLAG, FLAG, Document, load_documents, load_read_first, source_weights
from .gate_table import tabulate_gates
from .loss_picture import draw_losses
from .loss_record import StreamRecord
from .loss_table import PerplexityResults, tabulate_losses, token_weights
from .perplexity_report import losses_part
from .perplexity_settings import NO_MEMORY, PerplexitySettings
from .stream_reader import Loader, StreamReader, make_stream_reader


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
    _check_places(settings, options)
    facts = inspect_model(settings.model, options.device)
    documents = load_documents(settings, facts.tokenizer, facts.bos)
    read_first = load_read_first(settings, facts.tokenizer, facts.bos)
    _check_models(settings, facts, documents, options.device)
    reader = StreamReader(settings, documents, read_first, loader, options.device)
    if not reader.has_memory:
        print(f"--model {settings.model} has no fast-weight memory: measured as {NO_MEMORY!r}", file=sys.stderr)
    log = open_log(options, reader.identity(), StreamRecord.from_json)
    causality = reader.causality()
    records = measure_items(
        reader.keys(), log, reader.run, lambda measured: measured[-1].key.condition, workers=options.workers,
        make_worker=make_stream_reader, arguments=(settings, documents, read_first, loader, options.device),
    )  # fmt: skip
    results = _results(settings, options, reader, records, causality)
    write_atomically(options.output / "results.json", results.to_json())
    write_atomically(options.output / "results.csv", results.to_csv())
    write_atomically(options.output / "documents.csv", results.documents.to_csv())
    write_atomically(options.output / "run.json", run_json(results.provenance, results.tokens_per_second))
    write_atomically(options.output / "losses.png", draw_losses(results))
    write_report(losses_part(results), options.output)
    return results


def _check_places(settings: PerplexitySettings, options: RunOptions) -> None:
    """Folders, text files and the number of processes."""
    check_run(settings.model, options.output, options.workers)
    if settings.baseline is not None and not Path(settings.baseline).is_dir():
        raise ValueError(f"--baseline {settings.baseline} is not a folder")
    for flag, files in (FLAG, settings.text), (FIRST_FLAG, settings.read_first):
        if files:
            check_text_files(flag, files)


def _check_models(settings: PerplexitySettings, facts: ModelFacts, documents: Sequence[Document], device: str) -> None:
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
    settings: PerplexitySettings, options: RunOptions, reader: StreamReader, records: Sequence[StreamRecord],
    causality: CausalityCheck,
) -> PerplexityResults:  # fmt: skip
    documents, weights = reader.documents, source_weights(settings)
    read = {
        name: [one for record in records if record.key.condition == name for one in record.documents]
        for name in settings.conditions(reader.has_memory)
    }
    predicted = sum(len(document.tokens) - 1 for document in documents)
    speeds = {
        name: predicted / max(1e-9, sum(record.seconds for record in records if record.key.condition == name))
        for name in read
    }
    of_tokens = token_weights(documents, weights)
    scales = of_tokens or [1.0] * len(documents)
    letters = math.fsum(scale * document.num_bytes for scale, document in zip(scales, documents, strict=True))
    return PerplexityResults(
        settings, options.model_name or name_of_model(settings.model), tuple(read), weights,
        tabulate_losses(settings.block, read, documents, weights), tabulate_documents(read, documents),
        tabulate_gates(settings.block, read, of_tokens), letters / predicted, speeds, causality,
        provenance(options.command), reader.loaded.config_values(),
    )  # fmt: skip
