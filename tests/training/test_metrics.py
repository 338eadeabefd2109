"""Logs survive kills and resumes; the progress line says what matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_fwpkm.training.metrics import (
    EveryInterval,
    JsonLines,
    MetricsLog,
    TensorBoard,
    duration,
    flatten,
    progress_line,
    read_records,
    summary_lines,
)

RECORD = {
    "iteration": 20,
    "loss": 5.25,
    "lm_loss": 5.25,
    "lr": 1e-3,
    "grad_norm": 0.75,
    "tokens_per_second": 12345.6,
    "memory": {
        "3": {"gate_mean": 0.4, "coverage": 0.1, "collisions": 0.02, "memorization_loss": 0.9},
        "7": {"gate_mean": 0.6, "coverage": 0.3, "collisions": 0.04, "memorization_loss": 0.7},
    },
}


def test_a_resumed_log_drops_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.jsonl"
    with MetricsLog([JsonLines(path, keep_until=0)]) as log:
        for iteration in (10, 20, 30):
            log.write("train", {"iteration": iteration, "loss": 1.0})
    with path.open("a") as file:
        file.write('{"kind": "train", "iterat')  # torn by a kill
    with MetricsLog([JsonLines(path, keep_until=20)]) as log:
        log.write("train", {"iteration": 30, "loss": 2.0})
    assert [(r["iteration"], r["loss"]) for r in read_records(path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert all(json.loads(line)["kind"] == "train" for line in path.read_text().splitlines())


def test_a_new_run_moves_the_log_of_another_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for loss in (1.0, 2.0, 3.0):
        with MetricsLog([JsonLines(path, keep_until=0)]) as log:
            log.write("train", {"iteration": 10, "loss": loss})
    logs = {file.name: read_records(file)[0]["loss"] for file in tmp_path.iterdir()}
    assert logs == {"metrics.1.jsonl": 1.0, "metrics.2.jsonl": 2.0, "metrics.jsonl": 3.0}


@pytest.mark.parametrize("foreign", [b"somebody's notes", b"notes\n", b"\xff\n", b'{"kind": "train", "iter\n', b"[]\n"])
def test_a_resumed_run_loses_no_line_that_is_no_record(tmp_path: Path, foreign: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    content = foreign + b'\n{"kind": "train", "iteration": 10}\n{"kind": "train", "iteration": 30}\n'
    path.write_bytes(content)
    with MetricsLog([JsonLines(path, keep_until=20)]) as log:
        log.write("train", {"iteration": 30, "loss": 2.0})
    assert [r["iteration"] for r in read_records(path)] == [10, 30]
    assert (tmp_path / "metrics.1.jsonl").read_bytes() == content


def test_progress_line() -> None:
    line = progress_line(RECORD, 1000, 3725.0)
    assert line == (
        "iteration   20/1000 | loss 5.2500 | lr 1.000e-03 | grad 0.750 | 12,346 tokens/s | gate 0.50 | "
        "slots 20.0% collisions 3.0% | memorization 0.8000 | ETA 1:02:05"
    )
    assert "loss 5.2500 (lm 4.0000)" in progress_line({**RECORD, "lm_loss": 4.0}, 1000, 0.0)
    assert "gate" not in progress_line({**RECORD, "memory": {}}, 1000, 0.0)


def test_flatten_and_duration() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}}}) == {"a": 1, "b/c/d": 2}
    assert [duration(s) for s in (-3, 59.6, 61, 3600)] == ["0:00", "1:00", "1:01", "1:00:00"]


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    with MetricsLog([TensorBoard(str(tmp_path), purge_step=0)]) as log:
        log.write("train", RECORD)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars("train/memory/3/gate_mean")[0].step == 20
    assert abs(events.Scalars("train/loss")[0].value - 5.25) < 1e-6


def test_records_after_an_iteration_are_forgotten(tmp_path: Path) -> None:
    path, folder = tmp_path / "metrics.jsonl", str(tmp_path / "events")
    with MetricsLog([JsonLines(path, keep_until=0), EveryInterval(TensorBoard(folder, purge_step=0), 10)]) as log:
        for iteration, loss in ((10, 1.0), (15, 2.0), (20, 3.0), (30, 4.0)):
            log.write("train", {"iteration": iteration, "loss": loss})
        log.go_back(10)
        log.write("rewind", {"iteration": 10, "failed_iteration": 31})
        for iteration in (15, 20):
            log.write("train", {"iteration": iteration, "loss": 1.0 / iteration})
    kept = [(r["kind"], r["iteration"], r.get("loss")) for r in read_records(path)]
    assert kept == [("train", 10, 1.0), ("rewind", 10, None), ("train", 15, 1 / 15), ("train", 20, 0.05)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder)
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(10, 1.0), (20, pytest.approx(0.05))]
    assert [event.step for event in events.Scalars("rewind/failed_iteration")] == [10]


def test_summary_lines() -> None:
    lines = summary_lines(
        {
            "reason": "finished",
            "iteration": 5,
            "tokens": 1000,
            "seconds": 61.0,
            "tokens_per_second": 10.0,
            "peak_memory_gib": 0.5,
            "last_loss": 2.0,
            "best_loss": 1.5,
            "validation_loss": 3.0,
            "test_loss": 2.75,
            "places": {"checkpoint": "x/iter_0000005", "metrics": "x/metrics.jsonl", "tensorboard": None},
        }
    )
    assert lines[0] == "finished: iteration 5, 1,000 tokens in 1:01, median 10 tokens/s, peak memory 0.50 GiB"
    assert "test lm loss: 2.7500" in lines
    assert "checkpoint: x/iter_0000005" in lines
    assert not any("tensorboard" in line for line in lines)
