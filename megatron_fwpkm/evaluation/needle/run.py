"""Needle in a haystack, from settings to a report: facts in real text, recall by length and depth, and controls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.training.needles import NeedleSpec
from ..atomic_files import write_atomically
from ..model_loading import LoadedModel, first_token, load_model, tokenizer_of_model
from ..provenance import provenance
from ..sample_log import SampleLog, SampleRecord
from ..sample_progress import SampleProgress
from ..workers import run_in_processes
from .answers import READING
from .early_checks import check_facts, check_places, check_text
from .evaluator import Evaluator, Loader, make_evaluator
from .haystack import Haystack, load_haystack
from .heatmap import draw_heatmap
from .report import render_report
from .results import NeedleResults, reading_speed, tabulate
from .samples import all_cells
from .settings import MEMORY_ON, NeedleSettings, name_of_model


@dataclass(frozen=True)
class RunOptions:
    """How an evaluation runs; none of it changes a number."""

    output: Path
    """Folder of results.json, results.csv, heatmap.png, report.html and samples.jsonl."""
    workers: int = 1
    """Processes, each with a model of its own; 1 stays in this process."""
    device: str = "auto"
    """Torch device of every process; `auto` is CUDA where there is one."""
    overwrite: bool = False
    """Discard samples that are already in the output folder."""
    check_causality: bool = False
    """Also check that a changed token leaves all earlier logits alone."""
    command: Sequence[str] = ()
    """Program and arguments, for the record."""
    model_name: str = ""
    """What the report calls the model; else what its path tells."""


def evaluate(settings: NeedleSettings, options: RunOptions, loader: Loader = load_model) -> NeedleResults:
    """Measure, or go on measuring, and write every output. What can be refused is refused before weights are loaded.

    Args:
        settings: what to measure.
        options: how to run.
        loader: gives the model; a top-level function, since every process calls it.

    Raises:
        ValueError: anything a user can mend: model, haystack, lengths, output folder of another evaluation.
    """
    check_places(settings, options.output, options.workers)
    tokenizer = tokenizer_of_model(settings.model, options.device)
    bos = first_token(settings.model, tokenizer)
    check_facts(settings, NeedleSpec.from_config(settings.needle, tokenizer), bos)
    haystack = load_haystack(settings.haystack, tokenizer, bos)
    check_text(settings, haystack)
    loaded = loader(settings.model, options.device)
    evaluator = Evaluator(settings, loaded, haystack)
    options.output.mkdir(parents=True, exist_ok=True)
    log = SampleLog(
        options.output / "samples.jsonl", _identity(settings, loaded, haystack), overwrite=options.overwrite
    )
    causality = evaluator.causality() if options.check_causality else None
    cells = list(all_cells(settings))
    missing = [cell for cell in cells if cell not in log.records]
    with SampleProgress(len(cells), len(cells) - len(missing)) as progress:
        records: Iterator[SampleRecord]
        if options.workers == 1 or len(missing) < 2:
            records = map(evaluator.run, missing)
        else:
            records = run_in_processes(
                options.workers, missing, make_evaluator, (settings, haystack, loader, options.device)
            )
        for record in records:
            log.append(record)
            progress.advance(record.cell.length, record.answers[MEMORY_ON].exact)
    finished = [log.records[cell] for cell in cells]
    spec = evaluator.spec
    guess = 1 / len(spec.value_vocabulary)
    results = NeedleResults(
        settings, options.model_name or name_of_model(settings.model), tabulate(settings, finished),
        evaluator.reader.reach, guess**spec.value_words, guess,
        reading_speed(finished), causality, {**provenance(options.command), "memory": READING},
        {name: value for name, value in loaded.model.config.to_dict().items() if value is not None},
    )  # fmt: skip
    write_outputs(results, options.output)
    return results


def write_outputs(results: NeedleResults, folder: Path) -> None:
    """results.json, results.csv, heatmap.png and report.html, each whole or not at all."""
    heatmap = draw_heatmap(results)
    write_atomically(folder / "results.json", results.to_json())
    write_atomically(folder / "results.csv", results.to_csv())
    write_atomically(folder / "heatmap.png", heatmap)
    write_atomically(folder / "report.html", render_report(results))


def _identity(settings: NeedleSettings, loaded: LoadedModel, haystack: Haystack) -> dict[str, object]:
    """What must be equal for samples to belong together; where a file lies does not matter, what is in it does."""
    decisive = {name: value for name, value in settings.decides_a_sample().items() if name not in ("model", "haystack")}
    return {
        **decisive,
        "weights": loaded.weights_digest(),
        "tokenizer": loaded.tokenizer.identity,
        "haystack": hashlib.blake2b(haystack.tokens.tobytes(), digest_size=16).hexdigest(),
        **({} if loaded.bos is None else {"bos": loaded.bos}),
    }
