"""SIGTERM in an evaluation: the run saves at once, and going on gives the numbers of a run that nobody stopped."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.checkpoint.manager import published
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.training.metrics import read_records
from tests.test_pretrain import assert_same_checkpoint, flags, start, write_dataset
from tests.training.faulty_run import strike


def numbers(folder: Path) -> list[tuple[str, int, float]]:
    records = read_records(folder / "metrics.jsonl")
    found = [(r["kind"], r["iteration"], r["lm_loss"]) for r in records if r["kind"] in ("train", "evaluation", "test")]
    return sorted(found)


@pytest.mark.slow
def test_a_run_that_was_stopped_in_an_evaluation_ends_like_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(tmp_path / "numbers")
    more = {"train_iters": 6, "eval_interval": 3, "eval_iters": 4, "log_interval": 1, "save_interval": 100}
    assert start(flags(dataset, save=tmp_path / "calm", **more)) == 0
    argv = flags(dataset, save=tmp_path / "stopped", resume=True, **more)
    with monkeypatch.context() as patch:
        patch.setattr(MegatronEngine, "_run_micro_batches", MegatronEngine._run_micro_batches)  # undone afterwards
        strike(MegatronEngine, "_run_micro_batches", 3 + 2, signal.SIGTERM)  # the second batch of the first evaluation
        assert start(argv) == 0
    assert [path.name for path in published(tmp_path / "stopped")] == ["iter_0000003"]
    assert [kind for kind, _, _ in numbers(tmp_path / "stopped")] == ["train"] * 3
    assert start(argv) == 0
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "calm")
    assert_same_checkpoint(read_checkpoint(tmp_path / "calm"), read_checkpoint(tmp_path / "stopped"))
