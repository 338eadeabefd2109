"""The loop with an engine that only counts: what is logged, evaluated and saved when, and how a run ends."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.training.checkpointing import Progress
from megatron_fwpkm.training.engine import Batch, StepResult
from megatron_fwpkm.training.guards import TrainingDivergedError
from megatron_fwpkm.training.loop import TrainingLoop
from megatron_fwpkm.training.losses import Losses
from megatron_fwpkm.training.memory_report import LayerStatistics, MemoryReport
from megatron_fwpkm.training.metrics import JsonLines, MetricsLog, read_records
from megatron_fwpkm.training.startup import World


class CountingEngine:
    """Loss 1 / step; events happen at chosen steps."""

    def __init__(self, events: dict[int, Any] | None = None) -> None:
        self.steps = 0
        self.events = events or {}
        self.evaluations: list[int] = []

    def train_step(self, batches: Iterator[Batch]) -> StepResult:
        next(batches)
        self.steps += 1
        event = self.events.get(self.steps)
        if callable(event):
            event()
        loss = event if isinstance(event, float) else 1.0 / self.steps
        return StepResult(Losses(loss, loss), 0.5, 1e-3)

    def evaluate(self, batches: Iterable[Batch], iterations: int) -> Losses:
        self.evaluations.append(self.steps)
        return Losses(2.0, 3.0)

    def memory_report(self) -> MemoryReport:
        healthy = self.events.get("memory", lambda step: 1.0)(self.steps)
        return MemoryReport({3: LayerStatistics(0.5, 0.1, 0.0, healthy, -1.0)}, {3: healthy}, {3: True})

    def save(self, folder: Path) -> None: ...

    def requests_to_save(self, folder: Path) -> list[Any]:
        return []

    def load(self, folder: Path, *, weights_only: bool) -> list[str]:
        return []

    def peak_device_memory(self) -> int | None:
        return None


class SavedIterations:
    """Checkpoints that remember when they were asked for."""

    enabled = True

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.windows: list[list[tuple[float, float]]] = []
        self.begun_iteration: int | None = None
        self.waited = 0

    def save(self, progress: Progress) -> None:
        self.saved.append(progress.iteration)
        self.windows.append(list(progress.window))
        self.begun_iteration = progress.iteration

    def finish(self, *, wait: bool) -> None:
        self.waited += wait

    def newest(self) -> str | None:
        return None if self.begun_iteration is None else f"iter_{self.begun_iteration}"


def config(**training: Any) -> PretrainConfig:
    base = PretrainConfig()
    chosen = {"train_iters": 20, "eval_interval": 8, "eval_iters": 1, **training}
    return replace(
        base,
        model=replace(base.model, seq_length=4),
        training=replace(base.training, **chosen),
        checkpoint=replace(base.checkpoint, save="x", save_interval=6),
        logging=replace(base.logging, log_interval=5),
    )


def run(
    tmp_path: Path, engine: CountingEngine, chosen: PretrainConfig, progress: Progress | None = None
) -> tuple[SavedIterations, list[dict[str, Any]]]:
    saved = SavedIterations()
    progress = progress or Progress()
    path = tmp_path / "metrics.jsonl"
    world = World(0, 1, torch.device("cpu"))
    with MetricsLog([JsonLines(path, keep_until=progress.iteration)]) as metrics:
        loop = TrainingLoop(chosen, world, engine, saved, metrics, progress, samples_per_step=2)
        try:
            loop.run(iter(lambda: {}, None), [], [], {"metrics": str(path)})
        finally:
            records = read_records(path)
    return saved, records


def test_a_whole_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("megatron_fwpkm").propagate = True
    engine = CountingEngine()
    with caplog.at_level(logging.INFO, logger="megatron_fwpkm"):
        saved, records = run(tmp_path, engine, config())
    assert saved.saved == [6, 12, 18, 20]
    assert engine.evaluations == [8, 16, 20, 20]  # the last on test data
    assert [record["iteration"] for record in records if record["kind"] == "test"] == [20]
    train = [record for record in records if record["kind"] == "train"]
    assert [record["iteration"] for record in train] == [5, 10, 15, 20]
    assert train[1]["loss"] == pytest.approx(sum(1 / i for i in range(6, 11)) / 5, rel=1e-15)
    assert (train[3]["consumed_samples"], train[3]["consumed_tokens"]) == (40, 160)
    assert train[0]["memory"]["3"]["gate_mean"] == 0.5
    end = records[-1]
    assert (end["kind"], end["reason"], end["best_loss"]) == ("end", "finished", 1 / 20)
    assert (end["validation_loss"], end["test_loss"]) == (3.0, 3.0)
    assert end["places"]["checkpoint"] == "iter_20"
    assert any("iteration 20/20 | loss" in line for line in caplog.messages)
    assert any(line.startswith("finished: iteration 20, 160 tokens") for line in caplog.messages)


def test_every_key_of_a_record_is_explained(tmp_path: Path) -> None:
    _, records = run(tmp_path, CountingEngine(), config())
    document = (Path(__file__).resolve().parents[2] / "docs" / "training_log.md").read_text()
    layers = [layer for record in records for layer in record.get("memory", {}).values()]
    assert layers and {record["kind"] for record in records} == {"train", "evaluation", "test", "end"}
    keys = {key for record in [*records, *layers] for key in record} | {record["kind"] for record in records}
    assert [key for key in sorted(keys) if f"`{key}`" not in document] == []


def test_exit_interval_saves_and_stops_and_the_log_goes_on_where_it_was(tmp_path: Path) -> None:
    saved, records = run(tmp_path, CountingEngine(), config(exit_interval=7))
    assert saved.saved == [6, 7]
    assert records[-1]["test_loss"] is None  # a run that goes on later is not done with its test data
    assert len(saved.windows[-1]) == 2  # iterations 6 and 7 wait for the record at 10
    engine = CountingEngine()
    engine.steps = 7
    progress = Progress(7, 14, 56, best_loss=1 / 7, window=saved.windows[-1])
    _, records = run(tmp_path, engine, config(), progress)
    train = {record["iteration"]: record for record in records if record["kind"] == "train"}
    assert train[10]["loss"] == pytest.approx(sum(1 / i for i in range(6, 11)) / 5, rel=1e-15)
    assert sorted(train) == [5, 10, 15, 20]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    engine = CountingEngine({9: lambda: os.kill(os.getpid(), number)})
    saved, records = run(tmp_path, engine, config())
    assert engine.steps == 9
    assert saved.saved == [6, 9]
    assert records[-1]["reason"] == f"stopped by {number.name}"


def test_exit_duration(tmp_path: Path) -> None:
    saved, records = run(tmp_path, CountingEngine(), config(exit_duration_in_mins=0.0))
    assert records[-1]["reason"] == "stopped after --exit-duration-in-mins 0"
    assert saved.saved == []  # the time was over before the first step


def test_nan_stops_before_anything_is_saved(tmp_path: Path) -> None:
    engine = CountingEngine({12: math.nan})
    saved: list[int] = []
    with pytest.raises(TrainingDivergedError, match="iteration 12: the loss is nan"):
        saved, _ = run(tmp_path, engine, config())
    assert engine.steps == 12
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["iteration"] == 10


def test_a_diverged_memory_is_never_saved(tmp_path: Path) -> None:
    engine = CountingEngine({"memory": lambda step: 1.0 if step <= 60 else 100.0})
    with pytest.raises(TrainingDivergedError, match="iteration 65: the memory of layer 3 diverges"):
        run(tmp_path, engine, config(train_iters=80))


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    engine = CountingEngine()
    saved, records = run(tmp_path, engine, config(), Progress(20, 40, 160, 0.5))
    assert engine.steps == 0
    assert records[-1]["reason"] == "finished"
