"""pretrain.py and the checkpoint it goes on from: what is taken from there, what from the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.training import pretraining as training
from megatron_fwpkm.training.loop import TrainingLoop
from tests.test_pretrain import flags, start, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two datasets."""
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder / "numbers"), write_dataset(folder / "others", documents=30)


@pytest.fixture(scope="module")
def run(data: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has saved its iterations 2 and 4 of 20."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    assert start(flags(data[0], save=folder, save_interval=2, exit_interval=4)) == 0
    return folder


class Seen(TrainingLoop):
    """What a run would train with and on, without training."""

    instances: list[Seen] = []

    def run(self, validation: Any, test: Any, places: Any) -> None:
        train = self._recovery.training_data(self.progress)
        self.batches = [next(iter(source))["tokens"] for source in (train, validation, test)]
        self.instances.append(self)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    monkeypatch.setattr(training, "TrainingLoop", Seen)
    Seen.instances = []
    return Seen.instances


def go_on(data: tuple[str, str], run: Path, **changes: Any) -> int:
    """The run, resumed."""
    return start(flags(data[0], **{"save": run, "resume": True} | changes))


def test_what_stands_behind_the_engine_may_change(data: tuple[str, str], run: Path, seen: list[Seen]) -> None:
    """--divergence-factor and where the data comes from."""
    for change in ({}, {"divergence_factor": 3}, {"data_path": data[1]}):
        assert go_on(data, run, **change) == 0
    usual, factor, path = seen
    assert (usual._guard.factor, factor._guard.factor) == (10.0, 3.0)
    assert not any(torch.equal(one, two) for one, two in zip(usual.batches, path.batches, strict=True))
    assert {loop.progress.iteration for loop in seen} == {4}


@pytest.mark.slow
def test_the_data_of_each_purpose_may_change(data: tuple[str, str], run: Path, seen: list[Seen]) -> None:
    ours, other = data
    apart = {"data_path": None, "train_data_path": ours, "valid_data_path": ours, "test_data_path": ours}
    changes: list[dict[str, Any]] = [
        apart,
        apart | {"train_data_path": other},
        apart | {"valid_data_path": other},
        apart | {"test_data_path": other},
    ]
    for change in changes:
        assert go_on(data, run, **change) == 0
    for number, loop in enumerate(seen[1:]):
        same = [torch.equal(one, two) for one, two in zip(seen[0].batches, loop.batches, strict=True)]
        assert same == [place != number for place in range(3)]
    assert {loop.progress.iteration for loop in seen} == {4}


def groups(loop: Seen) -> list[dict[str, Any]]:
    """What the parameter groups hold now."""
    engine = loop._engine
    assert isinstance(engine, MegatronEngine)
    return engine.optimizer.param_groups


def said(capfd: pytest.CaptureFixture[str]) -> str:
    """The end of a run that went wrong: one line."""
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


OTHER = {"lr": 5e-3, "min_lr": 1e-3, "train_iters": 40, "weight_decay": 0.5, "adam_beta2": 0.9}


def test_another_schedule_is_taken_as_it_is_given(data: tuple[str, str], run: Path, seen: list[Seen]) -> None:
    for more in ({}, {"override_opt_param_scheduler": True}):
        assert go_on(data, run, **OTHER, **more) == 0
    for loop in seen:
        expected = 1e-3 + 4e-3 * 0.5 * (1 + math.cos(math.pi * 4 / 40))
        assert [group["lr"] for group in groups(loop)] == pytest.approx(2 * [expected], rel=1e-12)
        assert [group["weight_decay"] for group in groups(loop)] == [0.5, 0.0]
        assert all(group["betas"] == (0.9, 0.9) for group in groups(loop))


def test_the_checkpoints_schedule_is_taken_where_that_is_asked(
    data: tuple[str, str], run: Path, seen: list[Seen], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert go_on(data, run, **OTHER, use_checkpoint_opt_param_scheduler=True, log_dir=tmp_path) == 0
    expected = 1e-2 * 0.5 * (1 + math.cos(math.pi * 4 / 20))
    assert [group["lr"] for group in groups(seen[0])] == pytest.approx(2 * [expected], rel=1e-12)
    assert [group["weight_decay"] for group in groups(seen[0])] == [0.1, 0.0]
    assert all(group["betas"] == (0.9, 0.9) for group in groups(seen[0])), "Adam's options are no part of the schedule"
    assert seen[0]._config.training.train_iters == 40
    output = capfd.readouterr().out
    folder = f"checkpoint {run}/iter_0000004"
    assert (
        f"taken from {folder}: --lr 0.01 (instead of 0.005, command line), --min-lr 0.0 (instead of 0.001, "
        "command line)"
        in output
    )
    assert "--lr-decay-iters 20, --weight-decay 0.1 (instead of 0.5, command line)" in output
    written = (tmp_path / "config.yaml").read_text()
    assert f"lr: 0.01  # {folder}\n" in written and f"lr-decay-iters: 20  # {folder}\n" in written
    assert "train-iters: 40  # command line\n" in written


def test_another_schedule_is_refused_where_that_is_asked(
    data: tuple[str, str], run: Path, seen: list[Seen], capfd: pytest.CaptureFixture[str]
) -> None:
    assert go_on(data, run, no_override_opt_param_scheduler=True, adam_beta2=0.9) == 0
    capfd.readouterr()
    assert go_on(data, run, **OTHER, no_override_opt_param_scheduler=True) == 1
    differences = (
        "--lr is 0.01 in the checkpoint and 0.005 in this run; --min-lr is 0.0 in the checkpoint and 0.001 in this "
        "run; --lr-decay-iters is 20 in the checkpoint and 40 in this run; --weight-decay is 0.1 in the checkpoint "
        "and 0.5 in this run; use the saved values, or"
    )
    assert f"iter_0000004 with --no-override-opt-param-scheduler: {differences}" in said(capfd)
    assert len(seen) == 1


SHAPE = ("num_layers", "hidden_size", "num_attention_heads", "seq_length")
MEMORY = ("layer_numbers", "num_subkeys", "key_dim", "value_dim")
UNSAID = dict.fromkeys((*SHAPE, *(f"fwpkm_{name}" for name in MEMORY), "tokenizer_type", "vocab_size"))


def test_the_shape_is_taken_from_the_checkpoint(
    data: tuple[str, str], run: Path, seen: list[Seen], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shape = {"load": run, "use_checkpoint_args": True, **UNSAID}
    assert start(flags(data[0], **shape, norm_epsilon=0.1, log_dir=tmp_path)) == 0
    config = seen[0]._config
    assert [getattr(config.model, name) for name in SHAPE] == [2, 32, 2, 32]
    assert [getattr(config.fwpkm, name) for name in MEMORY] == [(2,), 8, 16, 16]
    assert (config.data.tokenizer_type, config.data.vocab_size) == ("NullTokenizer", 60)
    assert config.model.norm_epsilon == 1e-5
    assert seen[0].progress.iteration == 4 and seen[0].batches[0].shape == (2, 32)
    output = capfd.readouterr().out
    folder = f"checkpoint {run}/iter_0000004"
    assert f"taken from {folder}: --num-layers 2, --hidden-size 32, --num-attention-heads 2, --seq-length 32" in output
    assert "--norm-epsilon 1e-05 (instead of 0.1, command line)" in output
    written = (tmp_path / "config.yaml").read_text()
    for line in (f"num-layers: 2  # {folder}", f"fwpkm-layer-numbers: [2]  # {folder}", "lr: 0.01  # command line"):
        assert line + "\n" in written
    assert f"norm-epsilon: 1.0e-05  # {folder}\n" in written


def test_sizes_that_are_given_stay_and_must_fit(
    data: tuple[str, str], run: Path, seen: list[Seen], capfd: pytest.CaptureFixture[str]
) -> None:
    shape = {"load": run, "use_checkpoint_args": True, **UNSAID}
    assert start(flags(data[0], **shape | {"num_layers": 4})) == 1
    assert "--num-layers is 2 in the checkpoint and 4 in this run; use the saved values" in said(capfd)
    assert start(flags(data[0], **shape | {"seq_length": 16}, finetune=True)) == 0
    assert seen[0].batches[0].shape == (2, 16) and seen[0].progress.iteration == 0


def test_a_dry_run_shows_what_was_taken(data: tuple[str, str], run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shape = {"save": run, "resume": True, "use_checkpoint_args": True, **UNSAID}
    assert start(flags(data[0], **shape, dry_run=True)) == 0
    output = " ".join(capfd.readouterr().out.split())
    assert f"--num-layers 2 checkpoint {run}/iter_0000004"[:60] in output
    assert "--lr 0.01 command line" in output


def test_without_a_checkpoint_the_flags_hold(data: tuple[str, str], seen: list[Seen], tmp_path: Path) -> None:
    assert start(flags(data[0], save=tmp_path / "new", resume=True, use_checkpoint_args=True)) == 0
    assert seen[0]._config.model.num_layers == 2 and seen[0].progress.iteration == 0


def test_a_run_goes_on_from_the_step_that_is_named(
    data: tuple[str, str], run: Path, seen: list[Seen], capfd: pytest.CaptureFixture[str]
) -> None:
    assert go_on(data, run, ckpt_step=2) == 0
    output = capfd.readouterr().out
    assert seen[0].progress.iteration == 2 and seen[0].progress.consumed_samples == 8
    assert "--ckpt-step 2 skips the newer iter_0000004" in output and f"resumed from {run}/iter_0000002" in output
    assert start(flags(data[0], load=run, ckpt_step=2)) == 0
    assert seen[1].progress.iteration == 2
    assert go_on(data, run, ckpt_step=3) == 1
    assert "--ckpt-step 3: " in said(capfd)


def test_a_missing_checkpoint_ends_the_run_where_that_is_asked(
    data: tuple[str, str], seen: list[Seen], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new = {"save": tmp_path / "new", "exit_on_missing_checkpoint": True}
    assert start(flags(data[0], **new, resume=True)) == 1
    assert "contains no checkpoint to --resume from, and --exit-on-missing-checkpoint forbids a new run" in said(capfd)
    assert start(flags(data[0], **new, load=tmp_path / "nowhere")) == 1
    assert "nowhere is not a folder" in said(capfd)
    assert seen == []


def test_retained_checkpoints_stay(data: tuple[str, str], tmp_path: Path) -> None:
    kept = {"save_interval": 1, "save_retain_interval": 2, "keep_last": 1}
    assert start(flags(data[0], save=tmp_path, **kept, train_iters=3, eval_iters=0, split="1,0,0")) == 0
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_0000002", "iter_0000003"]
