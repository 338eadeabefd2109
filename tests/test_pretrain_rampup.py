"""--rampup-batch-size in whole runs: micro-batches of every step, order of the data, resume in its middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.engines import megatron as engine
from megatron_fwpkm.training.metrics import read_records
from tests.test_pretrain import assert_same_checkpoint, flags, start, write_dataset

RAMP = {
    "rampup_batch_size": "2 2 20", "global_batch_size": 8, "micro_batch_size": 2, "train_iters": 10, "log_interval": 1,
}  # fmt: skip
# Of 20 sequences a third each: 0-6, 6-13, 13-20, and from 21 on the whole batch.
STEPS = [2, 2, 2, 2, 4, 4, 6, 8, 8, 8]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers", documents=60)


class Reader:
    """A loader that remembers what was taken from it."""

    seen: list[Any] = []

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.seen.append(batch["tokens"])
            yield batch


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Tokens of every micro-batch that is trained on."""
    before = engine.MegatronEngine.train_step
    Reader.seen = []

    def train_step(self: Any, batches: Any, samples: int | None = None) -> Any:
        return before(self, iter(Reader(batches)), samples)

    monkeypatch.setattr(engine.MegatronEngine, "train_step", train_step)
    return Reader.seen


def consumed(folder: Path) -> list[int]:
    return [r["consumed_samples"] for r in read_records(folder / "metrics.jsonl") if r["kind"] == "train"]


def test_a_ramp_and_its_resume_in_the_middle(data: str, tmp_path: Path, taken: list[Any]) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert start(flags(data, save=whole, **RAMP)) == 0
    expected = [sum(STEPS[: number + 1]) for number in range(10)]
    assert consumed(whole) == expected
    assert len(taken) == sum(STEPS) // 2
    order = [batch.tolist() for batch in taken]
    taken.clear()
    # In the middle of the ramp.
    assert start(flags(data, save=halves, exit_interval=5, **RAMP)) == 0
    assert start(flags(data, save=halves, resume=True, **RAMP)) == 0
    assert consumed(halves) == expected
    assert [batch.tolist() for batch in taken] == order
    assert_same_checkpoint(*(read_checkpoint(folder / "iter_0000010") for folder in (whole, halves)))


@pytest.mark.slow
def test_the_order_is_that_without_a_ramp(data: str, tmp_path: Path, taken: list[Any]) -> None:
    """For a dataset of the same size."""
    assert start(flags(data, save=tmp_path / "ramp", **RAMP)) == 0
    order = [batch.tolist() for batch in taken]
    taken.clear()
    constant = {**RAMP, "rampup_batch_size": None, "global_batch_size": 2, "train_iters": sum(STEPS) // 2}
    assert start(flags(data, **constant, log_dir=tmp_path / "constant")) == 0
    assert [batch.tolist() for batch in taken] == order


def test_another_ramp_is_another_run(data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start(flags(data, save=tmp_path, exit_interval=2, **RAMP)) == 0
    capfd.readouterr()
    assert start(flags(data, save=tmp_path, resume=True, **{**RAMP, "rampup_batch_size": "2 2 40"})) == 1
    assert "--rampup-batch-size" in capfd.readouterr().err
