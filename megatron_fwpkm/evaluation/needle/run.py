"""Needle in a haystack, from settings to a report: facts in real text, recall by length and depth, and controls."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ..causality import CausalityCheck
from ..item_runner import RunOptions, measure_items, open_log
from ..model_loading import LoadedModel, inspect_model, load_model
from ..provenance import provenance
from ..report_page import name_of_model, write_report
from ..result_files import run_json, write_atomically
from .answers import NOTHING_TO_WRITE
from .early_checks import check_facts, check_places, check_positions, check_text
from .evaluator import Evaluator, Loader, make_evaluator
from .fact_kinds import fact_kind
from .haystack import Haystack, load_haystack
from .heatmap import draw_heatmap
from .needle_record import NeedleRecord
from .recall_curve import draw_curve
from .report import needle_part
from .results import ContextCounts, NeedleResults, reading_speed, tabulate
from .samples import all_cells
from .settings import NO_MEMORY, RESET_MEANINGS, WRITTEN_NOTHING, NeedleSettings


def evaluate(settings: NeedleSettings, options: RunOptions, loader: Loader = load_model) -> NeedleResults:
    """Measure, or continue measuring, and write all outputs. Invalid input is refused before weights are loaded.

    Args:
        settings: what to measure.
        options: how to run.
        loader: gives the model; a top-level function, since every process calls it.

    Raises:
        ValueError: anything a user can fix: model, haystack, lengths, output folder of a different evaluation.
    """
    check_places(settings, options.output, options.workers, options.ranks.size)
    facts = inspect_model(settings.model, options.device)
    kind = fact_kind(settings.needle_kind, settings.needle, facts.tokenizer)
    check_facts(settings, kind, facts.bos)
    check_positions(settings, kind, facts.positions)
    by_words = settings.length_unit == "words"
    haystack = load_haystack(settings.haystack, facts.tokenizer, facts.bos, by_words=by_words)
    check_text(settings, haystack)
    loaded = loader(settings.model, options.device)
    evaluator = Evaluator(settings, loaded, haystack)
    _tell_what_is_left_out(settings, evaluator)
    log = open_log(options, _identity(settings, loaded, haystack), NeedleRecord.from_json)
    causality = evaluator.causality()
    finished = measure_items(
        list(all_cells(settings)), log, evaluator.run, evaluator.progress_note, workers=options.workers,
        make_worker=make_evaluator, arguments=(settings, haystack, loader, options.device),
    )  # fmt: skip
    results = _results(settings, options, evaluator, loaded, finished, causality)
    write_outputs(results, options.output)
    return results


def _results(
    settings: NeedleSettings, options: RunOptions, evaluator: Evaluator, loaded: LoadedModel,
    finished: Sequence[NeedleRecord], causality: CausalityCheck,
) -> NeedleResults:  # fmt: skip
    kind, reader = evaluator.facts, evaluator.reader
    memory = RESET_MEANINGS[settings.memory_reset] if reader.model.has_memory else NOTHING_TO_WRITE
    return NeedleResults(
        settings, options.model_name or name_of_model(settings.model), reader.conditions, reader.reads,
        ContextCounts.of(finished), tabulate(settings, reader.conditions, reader.reads, finished), reader.reach,
        kind.chance_exact, kind.chance_token, reading_speed(finished), causality,
        {**provenance(options.command), "memory": memory}, loaded.config_values(),
    )  # fmt: skip


def _tell_what_is_left_out(settings: NeedleSettings, evaluator: Evaluator) -> None:
    """Say, for a model without memory, under which name it is measured and which control is skipped."""
    if evaluator.reader.model.has_memory:
        return
    left_out = [name for name in settings.controls if name in WRITTEN_NOTHING]
    without = f", without the controls {', '.join(left_out)}" if left_out else ""
    once = ", after one read" if settings.reads != (1,) else ""
    print(
        f"--model {settings.model} has no fast-weight memory: measured as {NO_MEMORY}{once}{without}", file=sys.stderr
    )


def write_outputs(results: NeedleResults, folder: Path) -> None:
    """results.json, results.csv, run.json, heatmap.png, curve.png and the report, each whole or not at all."""
    heatmap = draw_heatmap(results)
    write_atomically(folder / "results.json", results.to_json())
    write_atomically(folder / "results.csv", results.to_csv())
    write_atomically(folder / "run.json", run_json(results.provenance, results.tokens_per_second))
    write_atomically(folder / "heatmap.png", heatmap)
    write_atomically(folder / "curve.png", draw_curve(results))
    write_report(needle_part(results), folder)


def _identity(settings: NeedleSettings, loaded: LoadedModel, haystack: Haystack) -> dict[str, object]:
    """What must be equal for samples to belong together; where a file lies does not matter, what is in it does."""
    decisive = {name: value for name, value in settings.decides_a_sample().items() if name not in ("model", "haystack")}
    return {
        **decisive,
        **loaded.identity(),
        "haystack": hashlib.blake2b(haystack.tokens.tobytes(), digest_size=16).hexdigest(),
    }
