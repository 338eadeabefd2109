"""RULER, from settings to a report: every sample in every condition, resumed where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..causality_verdict import CausalityCheck
from ..item_runner import RunOptions, check_run, measure_items, open_log
from ..model_loading import LoadedModel, inspect_model, load_model
from ..provenance import provenance
from ..report_page import name_of_model, write_report
from ..result_files import run_json, write_atomically
from .ruler_evaluator import RulerEvaluator, RulerLoader, make_ruler_evaluator
from .ruler_picture import draw_scores
from .ruler_record import RulerItem, RulerRecord
from .ruler_report import ruler_report
from .ruler_results import RulerResults, count_prompts, tabulate_scores
from .ruler_settings import NEVER_SHOWN, RulerSettings
from .source_files import digest_of_sources, load_sources


def evaluate_ruler(settings: RulerSettings, options: RunOptions, loader: RulerLoader = load_model) -> RulerResults:
    """Measure, or continue measuring, and write all outputs. Invalid input is refused before weights are loaded.

    Args:
        settings: what to measure.
        options: how to run.
        loader: gives the model; a top-level function, since every process calls it.

    Raises:
        ValueError: anything a user can fix: model, files, lengths, output folder of a different evaluation.
    """
    check_run(settings.model, options.output, options.workers)
    facts = inspect_model(settings.model, options.device)
    _check_positions(settings, facts.positions)
    sources = load_sources(settings)
    for flag, names in settings.left_out().items():
        print(f"left out without {flag}: {', '.join(names)}", file=sys.stderr)
    loaded = loader(settings.model, options.device)
    evaluator = RulerEvaluator(settings, loaded, sources)
    identity = {
        **settings.decides_a_sample(),
        **loaded.identity(),
        "sources": digest_of_sources(settings, sources),
        "has_memory": evaluator.model.has_memory,
    }
    log = open_log(options, identity, RulerRecord.from_json)
    causality = evaluator.causality()
    items = [
        RulerItem(task, length, index)
        for length in sorted(settings.lengths)
        for task in settings.chosen_tasks()
        for index in range(settings.samples)
    ]
    records = measure_items(
        items, log, evaluator.run, evaluator.progress_note, workers=options.workers, make_worker=make_ruler_evaluator,
        arguments=(settings, loader, options.device),
    )  # fmt: skip
    results = _results(settings, options, evaluator, loaded, records, causality)
    write_ruler_outputs(results, records, options)
    return results


def _results(
    settings: RulerSettings, options: RunOptions, evaluator: RulerEvaluator, loaded: LoadedModel,
    records: Sequence[RulerRecord], causality: CausalityCheck,
) -> RulerResults:  # fmt: skip
    return RulerResults(
        settings, options.model_name or name_of_model(settings.model), (*evaluator.conditions, NEVER_SHOWN),
        settings.chosen_tasks(), settings.left_out(), tabulate_scores(settings, evaluator.conditions, records),
        count_prompts(settings, records), causality, loaded.config_values(),
    )  # fmt: skip


def write_ruler_outputs(results: RulerResults, records: Sequence[RulerRecord], options: RunOptions) -> None:
    """results.json, results.csv, run.json, scores.png and the report, each whole or not at all."""
    folder: Path = options.output
    origin = provenance(options.command)
    speeds = {}
    for length in sorted(results.settings.lengths):
        here = [record for record in records if record.item.length == length]
        read = sum(record.prompt_tokens * len(record.predictions) + sum(record.generated.values()) for record in here)
        speeds[length] = read / max(1e-9, sum(record.seconds for record in here))
    write_atomically(folder / "results.json", results.to_json())
    write_atomically(folder / "results.csv", results.to_csv())
    write_atomically(folder / "run.json", run_json(origin, speeds))
    write_atomically(folder / "scores.png", draw_scores(results))
    write_report(ruler_report(results, origin), folder)


def _check_positions(settings: RulerSettings, positions: int | None) -> None:
    """Raise ValueError if a prompt with its answer and BOS exceeds the learned position embeddings of the model."""
    if positions is not None and (longest := max(settings.lengths)) + 1 > positions:
        raise ValueError(
            f"--lengths {longest} and BOS exceed the {positions} learned position embeddings of --model "
            f"{settings.model}; use shorter lengths"
        )
