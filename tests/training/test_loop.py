"""The loop with an engine that only counts: what is logged, evaluated and saved when, and how a run ends."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.pswa import count_windowed
from megatron_fwpkm.distributed.startup import World
from megatron_fwpkm.engines.base import Batch, StepResult
from megatron_fwpkm.engines.losses import Losses
from megatron_fwpkm.engines.memory_report import LayerStatistics, MemoryReport
from megatron_fwpkm.training import loop as loop_module
from megatron_fwpkm.training.checkpointing import TrainingProgress
from megatron_fwpkm.training.guards import TrainingDivergedError
from megatron_fwpkm.training.loop import TrainingLoop
from megatron_fwpkm.training.metrics import JsonLines, MetricsLog, read_records
from megatron_fwpkm.training.recovery import Recovery


class CountingEngine:
    """Loss 1 / step; events happen at chosen steps."""

    def __init__(self, events: dict[Any, Any] | None = None) -> None:
        self.steps = 0
        self.events = events or {}
        self.evaluations: list[int] = []
        self.evaluated_batches = 0

    def train_step(self, batches: Iterator[Batch], samples: int | None = None) -> StepResult:
        next(batches)
        self.steps += 1
        event = self.events.get(self.steps)
        if callable(event):
            event()
        loss = event if isinstance(event, float) else 1.0 / self.steps
        return StepResult(Losses(loss, loss), 0.5, 1e-3)

    def evaluate(
        self, batches: Iterable[Batch], iterations: int, stop: Callable[[], bool] | None = None
    ) -> Losses | None:
        assert stop is not None
        self.evaluations.append(self.steps)
        for batch in range(iterations):
            if stop():
                return None
            self.evaluated_batches += 1
            self.events.get("evaluation", lambda *_: None)(len(self.evaluations), batch)
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
        self.saved_iteration: int | None = None
        self.waited = 0

    def save(self, progress: TrainingProgress) -> None:
        self.saved.append(progress.iteration)
        self.windows.append(list(progress.window))
        self.begun_iteration = progress.iteration
        self.evaluation_cut_off = progress.evaluation_cut_off

    def finish(self, *, wait: bool) -> None:
        """As a background save: whole when somebody waits."""
        self.waited += wait
        if wait:
            self.saved_iteration = self.begun_iteration

    def go_back(self, before: int) -> TrainingProgress | None:
        """To the last of the saved iterations before one."""
        earlier = [iteration for iteration in self.saved if iteration < before]
        if not earlier:
            return None
        self.begun_iteration = self.saved_iteration = earlier[-1]
        return TrainingProgress(earlier[-1], 2 * earlier[-1])

    def leave_data_out(self, progress: TrainingProgress) -> None:
        self.left_out = progress.skipped_samples

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
    tmp_path: Path, engine: CountingEngine, chosen: PretrainConfig, progress: TrainingProgress | None = None
) -> tuple[SavedIterations, list[dict[str, Any]]]:
    saved = SavedIterations()
    progress = progress or TrainingProgress()
    path = tmp_path / "metrics.jsonl"
    world = World(0, 1, torch.device("cpu"))
    with MetricsLog([JsonLines(path, keep_until=progress.iteration)]) as metrics:
        recovery = Recovery(chosen, saved, lambda progress: iter(lambda: {}, None))
        loop = TrainingLoop(chosen, world, engine, saved, metrics, progress, 2, recovery)
        try:
            loop.run([], [], {"metrics": str(path)})
        finally:
            records = read_records(path)
    return saved, records


def test_a_whole_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("megatron_fwpkm").propagate = True
    engine = CountingEngine()
    with caplog.at_level(logging.INFO, logger="megatron_fwpkm"):
        saved, records = run(tmp_path, engine, config())
    assert saved.saved == [6, 12, 18, 20]
    assert [record["iteration"] for record in records if record["kind"] == "save"] == saved.saved
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
    assert layers and {record["kind"] for record in records} == {"train", "evaluation", "test", "save", "end"}
    keys = {key for record in [*records, *layers] for key in record} | {record["kind"] for record in records}
    assert [key for key in sorted(keys) if f"`{key}`" not in document] == []


def test_exit_interval_saves_and_stops_and_the_log_goes_on_where_it_was(tmp_path: Path) -> None:
    saved, records = run(tmp_path, CountingEngine(), config(exit_interval=7))
    assert saved.saved == [6, 7]
    assert records[-1]["test_loss"] is None  # a run that goes on later is not done with its test data
    assert len(saved.windows[-1]) == 2  # iterations 6 and 7 wait for the record at 10
    engine = CountingEngine()
    engine.steps = 7
    progress = TrainingProgress(7, 14, 56, best_loss=1 / 7, window=saved.windows[-1])
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


@pytest.mark.parametrize(("when", "iteration"), [(1, 8), (3, 20), (4, 20)])
def test_a_signal_in_an_evaluation_is_seen_after_its_batch(tmp_path: Path, when: int, iteration: int) -> None:
    """In one on the way, in the one after the last iteration, and in that of the test data."""

    def event(evaluation: int, batch: int) -> None:
        if (evaluation, batch) == (when, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    engine = CountingEngine({"evaluation": event})
    saved, records = run(tmp_path, engine, config(eval_iters=1000))
    assert engine.evaluated_batches == 1000 * (when - 1) + 2
    assert saved.saved[-1] == iteration and saved.evaluation_cut_off == (when < 4)
    assert records[-1]["reason"] == "stopped by SIGTERM"
    assert [r["iteration"] for r in records if r["kind"] == "evaluation"] == [8, 16, 20][: when - 1]
    assert records[-1]["test_loss"] is None
    # The run that goes on makes up for it.
    engine = CountingEngine()
    engine.steps = iteration
    progress = TrainingProgress(iteration, 2 * iteration, 8 * iteration, evaluation_cut_off=saved.evaluation_cut_off)
    _, records = run(tmp_path, engine, config(eval_iters=3), progress)
    assert [r["iteration"] for r in records if r["kind"] == "evaluation"] == [8, 16, 20]
    assert [r["iteration"] for r in records if r["kind"] == "test"] == [20]
    assert (records[-1]["reason"], records[-1]["test_loss"]) == ("finished", 3.0)
    assert not progress.evaluation_cut_off


def test_an_evaluation_does_not_outlast_exit_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loop_module, "time", clock)
    engine = CountingEngine({"evaluation": lambda *_: clock.advance(30)})
    saved, records = run(tmp_path, engine, config(eval_iters=1000, exit_duration_in_mins=10.0))
    assert engine.evaluated_batches == 20
    assert saved.saved == [6, 8]
    assert records[-1]["reason"] == "stopped after --exit-duration-in-mins 10"


class Clock:
    """A clock that stands still between the things that take time."""

    def __init__(self) -> None:
        self.now = 1e6

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def test_speeds_and_losses_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 tokens per step: 16 per second in the first ten steps, 32 in the others; evaluations do not count."""
    clock = Clock()
    monkeypatch.setattr(loop_module, "time", clock)
    steps = {step: (lambda: clock.advance(0.5)) if step <= 10 else (lambda: clock.advance(0.25)) for step in range(21)}
    engine = CountingEngine({**steps, "evaluation": lambda *_: clock.advance(7)})
    _, records = run(tmp_path, engine, config())
    train = [record for record in records if record["kind"] == "train"]
    assert [record["tokens_per_second"] for record in train] == pytest.approx([16, 16, 32, 32], rel=1e-12)
    assert [r["seconds"] for r in records if r["kind"] == "evaluation"] == pytest.approx([7] * 3, rel=1e-12)
    end = records[-1]
    assert (end["tokens_per_second"], end["tokens"]) == (pytest.approx(24, rel=1e-12), 160)
    assert (end["last_loss"], end["best_loss"], end["seconds"]) == (1 / 20, 1 / 20, pytest.approx(7.5 + 4 * 7))


def test_a_background_save_says_when_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop_module, "time", clock)
    monkeypatch.setattr(logging.getLogger("megatron_fwpkm"), "propagate", True)
    chosen = config(train_iters=9)
    chosen = replace(chosen, checkpoint=replace(chosen.checkpoint, async_save=True))
    engine = CountingEngine({step: lambda: clock.advance(2.0) for step in range(10)})
    with caplog.at_level(logging.INFO, logger="megatron_fwpkm"):
        _, records = run(tmp_path, engine, chosen)
    saves = [(record["iteration"], record["seconds"]) for record in records if record["kind"] == "save"]
    assert saves == [(6, 6.0), (9, 0.0)]
    said = [line for line in caplog.messages if "checkpoint of" in line]
    assert said == [
        "writing the checkpoint of iteration 6 in the background (training waited 0.0 s)",
        "the checkpoint of iteration 6 is complete: iter_6, saved in 6.0 s",
        "writing the checkpoint of iteration 9 in the background (training waited 0.0 s)",
        "the checkpoint of iteration 9 is complete: iter_9, saved in 0.0 s",
    ]


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
    saved, records = run(tmp_path, engine, config(), TrainingProgress(20, 40, 160, 0.5))
    assert engine.steps == 0
    assert records[-1]["reason"] == "finished"


def test_records_tell_how_many_of_their_steps_saw_windows(tmp_path: Path) -> None:
    plain = config()
    drawn = replace(plain, fwpkm=replace(plain.fwpkm, pswa_probability=0.5))
    _, records = run(tmp_path, CountingEngine(), drawn)
    shares = [record["pswa_share"] for record in records if record["kind"] == "train"]
    assert shares == [count_windowed(drawn, range(first, first + 5)) / 5 for first in (0, 5, 10, 15)]
    assert len(set(shares)) > 1
    assert not [record for record in run(tmp_path / "plain", CountingEngine(), plain)[1] if "pswa_share" in record]
