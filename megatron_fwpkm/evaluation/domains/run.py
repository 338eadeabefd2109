"""Domains, from settings to a report: every stage of every order, resumed where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from ..causality import check_causality
from ..causality_verdict import CausalityCheck
from ..item_runner import RunOptions, check_run, measure_items, open_log
from ..model_loading import LoadedModel, inspect_model, load_model
from ..provenance import provenance
from ..report_page import name_of_model, write_report
from ..result_files import run_json, write_atomically
from ..text_files import check_text_files
from ..text_model import text_model
from .domain_report import forgetting_part
from .domain_settings import DomainSettings
from .domain_texts import FLAG, DomainTexts, load_domains
from .forgetting import DomainResults, tabulate_stages
from .forgetting_picture import draw_forgetting
from .stage_reader import StageReader, stage_keys
from .stage_record import StageKey, StageRecord

Loader = Callable[[str, str], LoadedModel]
"""Model folder and device to a loaded model; a top-level function, since every process calls it."""


def measure_domains(settings: DomainSettings, options: RunOptions, loader: Loader = load_model) -> DomainResults:
    """Measure, or continue measuring, and write all outputs. Invalid input is refused before weights are loaded.

    Args:
        settings: what to measure.
        options: how to run.
        loader: gives a model.

    Raises:
        ValueError: anything a user can fix: model, texts, output folder of a different evaluation.
    """
    check_run(settings.model, options.output, options.workers)
    check_text_files(FLAG, [path for domain in settings.domains for path in domain.files])
    facts = inspect_model(settings.model, options.device)
    if not facts.has_memory:
        raise ValueError(
            f"--model {settings.model} has no fast-weight memory: reading changes none of its weights, so that it "
            "cannot adapt to a domain"
        )
    texts = load_domains(settings, facts.tokenizer, facts.bos)
    loaded = loader(settings.model, options.device)
    reader = StageReader(settings, texts, text_model(loaded.model))
    log = open_log(options, _identity(settings, loaded, texts), StageRecord.from_json)
    causality = _causality(loaded, texts)
    records = measure_items(
        stage_keys(settings), log, reader.run, lambda measured: f"stage {measured[-1].key.stage}",
        workers=options.workers, make_worker=make_stage_reader, arguments=(settings, texts, loader, options.device),
    )  # fmt: skip
    results = DomainResults(
        settings, options.model_name or name_of_model(settings.model), tuple(one.adapt_tokens for one in texts),
        tabulate_stages(settings, records), causality, provenance(options.command),
        loaded.config_values(),
    )  # fmt: skip
    write_atomically(options.output / "results.json", results.to_json())
    write_atomically(options.output / "results.csv", results.to_csv())
    write_atomically(options.output / "run.json", run_json(results.provenance, {}))
    write_atomically(options.output / "forgetting.png", draw_forgetting(results))
    write_report(forgetting_part(results), options.output)
    return results


def make_stage_reader(
    settings: DomainSettings, texts: Sequence[DomainTexts], loader: Loader, device: str
) -> Callable[[StageKey], StageRecord]:
    """What a worker process does with a stage."""
    return StageReader(settings, texts, text_model(loader(settings.model, device).model)).run


def _identity(settings: DomainSettings, loaded: LoadedModel, texts: Sequence[DomainTexts]) -> dict[str, object]:
    """What must be equal for records to belong together; where files lie does not matter, what is in them does."""
    digest = hashlib.blake2b(digest_size=16)
    for domain in texts:
        for document in (*domain.adapt, *domain.held_out):
            digest.update(document.tobytes() + b"|")
    return {**settings.decides_a_record(), **loaded.identity(), "text": digest.hexdigest()}


def _causality(loaded: LoadedModel, texts: Sequence[DomainTexts]) -> CausalityCheck:
    """The check on the beginning of the first text."""
    return check_causality(text_model(loaded.model), texts[0].adapt[0], loaded.tokenizer.vocab_size)
