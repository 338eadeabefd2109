"""Train one model of a grid in a process of its own, and measure it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.loading import parse_pretrain
from ...config.parameter_counts import num_parameters
from ...processes.parent import program_that_stops_with_parent
from ..item_runner import RunOptions
from ..model_loading import load_tokenizer
from ..needle.results import NeedleResults
from ..needle.run import evaluate
from ..needle.settings import NeedleSettings
from ..perplexity.loss_table import PerplexityResults
from ..perplexity.perplexity_settings import NO_MEMORY, PerplexitySettings
from ..perplexity.run import measure_perplexity
from .ablation_settings import AblationOptions
from .grid import Grid, Trial, command_words
from .trial_record import TrialRecord

_ROOT = Path(__file__).resolve().parents[3]
_CALIBRATION = 10, 40
"""Iterations of two short runs; what lies between them is the cost of an iteration."""


class TrialFailed(ValueError):
    """A training process ended with an error; the message has its last words."""


@dataclass(frozen=True)
class TrialRunner:
    """Trains and measures trials; what a worker process is given."""

    grid: Grid
    options: AblationOptions

    def __call__(self, trial: Trial) -> TrialRecord:
        """The record of a trial; a training that was interrupted continues."""
        folder = Path(self.options.output) / "models" / trial.name
        flags = self._flags(trial)
        if self.grid.cpu_seconds is not None:
            flags |= self._iterations(trial, flags, folder)
        before = _cpu_seconds_so_far(folder)
        seconds = before + _train([*self._words(flags), "--save", str(folder / "checkpoints"), "--resume"], folder)
        (folder / "cpu_seconds.txt").write_text(f"{seconds}\n")
        losses = self._perplexity(folder)
        config = parse_pretrain([*self._words(flags), "--save", str(folder / "checkpoints")]).config
        measured = "on" if "on" in losses.conditions else NO_MEMORY
        return TrialRecord(
            name=trial.name,
            choices=trial.choices,
            seed=trial.seed,
            iterations=config.training.train_iters,
            parameters=num_parameters(config, load_tokenizer(folder / "checkpoints").vocab_size),
            cpu_seconds=round(seconds, 1),
            losses=_by_position(losses, measured),
            without_memory=_by_position(losses, "off") if "off" in losses.conditions else {},
            gates=_gates(folder / "metrics.jsonl"),
            recall=self._recall(folder),
        )

    def _flags(self, trial: Trial) -> dict[str, Any]:
        data = {"data-path": self.options.data_path, "tokenizer-model": self.options.tokenizer_model}
        return {**data, "seed": trial.seed, **trial.flags}

    def _words(self, flags: Mapping[str, Any]) -> list[str]:
        return ["--config", str(self.grid.base), *command_words(flags)]

    def _iterations(self, trial: Trial, flags: Mapping[str, Any], folder: Path) -> dict[str, int]:
        """How many iterations take the grid's CPU time; measured once, and kept beside the model."""
        file = folder / "iterations.json"
        if not file.exists():
            first, second = (self._short_run(flags, folder / "calibration", count) for count in _CALIBRATION)
            per_iteration = max(1e-6, (second - first) / (_CALIBRATION[1] - _CALIBRATION[0]))
            assert self.grid.cpu_seconds is not None
            count = max(_CALIBRATION[1], round(self.grid.cpu_seconds / per_iteration))
            file.write_text(json.dumps({"train-iters": count}) + "\n")
        found: dict[str, int] = json.loads(file.read_text())
        return found

    def _short_run(self, flags: Mapping[str, Any], folder: Path, iterations: int) -> float:
        """CPU seconds of so many iterations, the start and one checkpoint included."""
        shutil.rmtree(folder, ignore_errors=True)
        words = ["--exit-interval", str(iterations), "--eval-iters", "0", "--save", str(folder / "checkpoints")]
        seconds = _train([*self._words(flags), *words], folder)
        shutil.rmtree(folder)
        return seconds

    def _perplexity(self, folder: Path) -> PerplexityResults:
        settings = PerplexitySettings(
            str(folder / "checkpoints"), self.options.text, memory_reset="document", length=self.options.length
        )
        return measure_perplexity(settings, RunOptions(folder / "perplexity", device="cpu", model_name=folder.name))

    def _recall(self, folder: Path) -> dict[str, float]:
        options = self.options
        if not options.needle_lengths:
            return {}
        settings = NeedleSettings(
            str(folder / "checkpoints"), options.text[:1], options.needle_lengths, samples=(options.needle_samples,),
            controls=(),
        )  # fmt: skip
        found: NeedleResults = evaluate(settings, RunOptions(folder / "needle", device="cpu", model_name=folder.name))
        return {str(length): found.find(found.measured, length).exact_match for length in options.needle_lengths}


def make_trial_runner(grid: Grid, options: AblationOptions) -> Callable[[Trial], TrialRecord]:
    """What a worker process does with a trial."""
    return TrialRunner(grid, options)


def _train(words: list[str], folder: Path) -> float:
    """Run pretrain.py with its log in `folder`; returns the CPU seconds of the process.

    If this process is killed, the training saves a checkpoint and stops: the next one continues from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(_ROOT / "pretrain.py"), *words, "--log-dir", str(folder)]
    with (folder / "training.txt").open("w") as log:
        stops = program_that_stops_with_parent()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment(), preexec_fn=stops)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = [line for line in (folder / "training.txt").read_text().splitlines() if line.strip()][-1:]
        raise TrialFailed(
            f"the training of {folder.name} ended with status {process.returncode} ({' '.join(last)}); its log is "
            f"{folder / 'training.txt'}"
        )
    return usage.ru_utime + usage.ru_stime


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _cpu_seconds_so_far(folder: Path) -> float:
    file = folder / "cpu_seconds.txt"
    return float(file.read_text()) if file.exists() else 0.0


def _by_position(results: PerplexityResults, condition: str) -> dict[str, float]:
    parts = {str(span.start): results.find(condition, None, span).loss.mean for span in results.spans()}
    return {"all": results.find(condition).loss.mean, **parts}


def _gates(log: Path) -> dict[str, float]:
    """From the last record that has memories."""
    for line in reversed(log.read_text().splitlines()):
        record = json.loads(line)
        if record.get("kind") == "train":
            memory = record.get("memory") or {}
            return {layer: figures["gate_mean"] for layer, figures in memory.items() if "gate_mean" in figures}
    return {}
