"""An ablation, from its grid to a report: seed by seed within the budget, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...config.loading import parse_pretrain
from ...config.validation import problems
from ...data.indexed.indexed_format import read_dataset_info
from ..item_runner import RunOptions, check_output, measure_items
from ..provenance import provenance
from ..record_log import RecordLog
from ..report_page import write_report
from ..result_files import write_atomically
from ..text_files import check_text_files
from .ablation_picture import draw_ablation
from .ablation_report import ablation_part
from .ablation_settings import AblationOptions
from .ablation_table import AblationResults, tabulate_trials
from .grid import Grid, Trial, command_words, read_grid
from .trial_record import TrialRecord
from .trial_run import make_trial_runner


def run_ablation(options: AblationOptions, run: RunOptions) -> AblationResults:
    """Train and measure, or continue; write all outputs. What cannot be trained is refused before anything is.

    Args:
        options: the grid, its data and its budget.
        run: output folder, processes and command.

    Raises:
        ValueError: anything a user can fix: grid, a flag of a choice, data, text, another ablation in the folder; or a
            training failed.
    """
    grid = read_grid(Path(options.grid))
    check_output(run.output, run.workers)
    check_text_files("--text", options.text)
    check_text_files("--tokenizer-model", (options.tokenizer_model,))
    read_dataset_info(options.data_path)
    trials = list(grid.trials())
    for trial in trials:
        _check_trial(grid, trial, options)
    if run.overwrite:
        shutil.rmtree(run.output / "models", ignore_errors=True)
    run.output.mkdir(parents=True, exist_ok=True)
    log = RecordLog(
        run.output / "samples.jsonl", _identity(grid, options), TrialRecord.from_json, overwrite=run.overwrite
    )
    records = _measure(grid, options, run, log, trials)
    results = AblationResults(
        grid, tuple(grid.axes), tuple(records),
        tabulate_trials(grid, records, _tokens_by_position(run.output, records[0])), len(trials) - len(records),
        provenance(run.command),
    )  # fmt: skip
    write_atomically(run.output / "results.json", results.to_json())
    write_atomically(run.output / "results.csv", results.to_csv())
    write_atomically(run.output / "ablation.png", draw_ablation(results))
    write_report(ablation_part(results, options), run.output)
    return results


def _measure(
    grid: Grid, options: AblationOptions, run: RunOptions, log: RecordLog[TrialRecord], trials: Sequence[Trial]
) -> list[TrialRecord]:
    """The records of as many whole seeds as the budget allows, at least one."""
    begin, slowest, records = time.monotonic(), 0.0, list[TrialRecord]()
    for seed in grid.seeds:
        ours = [trial for trial in trials if trial.seed == seed]
        hours = (time.monotonic() - begin + slowest) / 3600
        done = all(trial.name in log.records for trial in ours)
        if options.max_hours is not None and records and not done and hours > options.max_hours:
            print(f"--max-hours {options.max_hours:g}: seed {seed} and later ones are left out", file=sys.stderr)
            break
        before = time.monotonic()
        names = {trial.name: trial for trial in ours}
        records += measure_items(
            list(names), log, _by_name(grid, options, names), lambda measured: measured[-1].name, workers=run.workers,
            make_worker=_by_name, arguments=(grid, options, names),
        )  # fmt: skip
        slowest = max(slowest, time.monotonic() - before)
    return records


def _by_name(grid: Grid, options: AblationOptions, trials: dict[str, Trial]) -> Any:
    """What a process does with the name of a trial."""
    runner = make_trial_runner(grid, options)
    return lambda name: runner(trials[name])


def _check_trial(grid: Grid, trial: Trial, options: AblationOptions) -> None:
    """See that pretrain.py would take the trial's flags."""
    words = ["--config", str(grid.base), *command_words(trial.flags), "--data-path", options.data_path]
    words += ["--tokenizer-model", options.tokenizer_model, "--seed", str(trial.seed), "--save", options.output]
    try:
        config = parse_pretrain(words).config
    except SystemExit as error:
        raise ValueError(f"--grid {options.grid}: pretrain.py refuses the flags of {trial.name}, see above") from error
    if found := list(problems(config, 1)):
        raise ValueError(f"--grid {options.grid}: {trial.name} cannot be trained: {found[0]}")


def _identity(grid: Grid, options: AblationOptions) -> dict[str, object]:
    """What must be equal for models to belong together; more seeds may be added."""
    held_out = hashlib.blake2b(digest_size=16)
    for path in options.text:
        held_out.update(Path(path).read_bytes())
    index = Path(options.data_path + ".idx")
    return {
        "axes": json.loads(json.dumps(asdict(grid)["axes"])),
        "base": grid.base.read_text(encoding="utf-8"),
        "cpu_seconds": grid.cpu_seconds,
        "data": hashlib.blake2b(index.read_bytes() if index.is_file() else b"", digest_size=16).hexdigest(),
        "text": held_out.hexdigest(),
        "length": options.length,
        "needles": [list(options.needle_lengths), options.needle_samples],
    }


def _tokens_by_position(output: Path, record: TrialRecord) -> dict[str, int]:
    """Predicted tokens of every part of the positions; the same for all models, which read the same tokens."""
    found = json.loads((output / "models" / record.name / "perplexity" / "results.json").read_text())
    rows = [row for row in found["results"] if row["condition"] == found["results"][0]["condition"]]
    return {
        str(row["start"]): row["tokens"]
        for row in rows
        if row["versus"] is None and not (row["start"] == 0 and row["stop"] is None)
    }
