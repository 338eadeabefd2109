"""Export, import, and pretraining that goes on: the same weights and the same losses, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import pretrain
from megatron_fwpkm.checkpoint.checkpoint_reader import CheckpointContents, read_checkpoint
from megatron_fwpkm.conversion.convert_options import FastWeights, ImportOptions
from megatron_fwpkm.conversion.export import export
from megatron_fwpkm.conversion.megatron_import import import_export
from megatron_fwpkm.training.metrics import read_records
from tests import test_pretrain
from tests.layers.megatron import initialize
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import flags, start, write_dataset

UNPADDED = {"make_vocab_size_divisible_by": 1}
"""With which the vocabulary of 61 ids has 61 rows."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended at iteration 4."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    assert start(flags(data, save=folder, train_iters=4, **UNPADDED)) == 0
    torch.use_deterministic_algorithms(False)
    initialize()
    return folder


@pytest.fixture(scope="module")
def imported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, exported with its trained fast weights and imported."""
    folder = tmp_path_factory.mktemp("imported")
    export(run, folder / "hf")
    options = ImportOptions(str(folder / "hf"), str(folder / "run"), make_vocab_size_divisible_by=1)
    assert import_export(options) == folder / "run" / "iter_0000000"
    return folder / "run"


def assert_same_weights(one: CheckpointContents, other: CheckpointContents) -> None:
    """Bit for bit, and under the same names."""
    assert one.slow.keys() == other.slow.keys() and one.fast.keys() == other.fast.keys()
    for name in one.slow:
        assert torch.equal(one.slow[name], other.slow[name]), name
    for number, memory in one.fast.items():
        assert memory.tables.keys() == other.fast[number].tables.keys()
        for name in memory.tables:
            assert torch.equal(memory.tables[name], other.fast[number].tables[name]), (number, name)


def measured(folder: Path) -> list[tuple[Any, ...]]:
    """Every loss that a run has logged."""
    names = ("kind", "iteration", "loss", "lm_loss", "grad_norm")
    records = read_records(folder / "metrics.jsonl")
    return [tuple(r.get(name) for name in names) for r in records if r["kind"] in ("train", "evaluation", "test")]


def test_the_weights_are_the_runs(run: Path, imported: Path) -> None:
    assert_same_weights(read_checkpoint(run), read_checkpoint(imported))


def go_on(data: str, folder: Path, load: Path, **changes: Any) -> list[tuple[Any, ...]]:
    """The losses of three steps and of the evaluations between them, from a checkpoint's weights."""
    more = {"train_iters": 3, "log_interval": 1, "eval_interval": 1, **UNPADDED, **changes}
    assert start(flags(data, load=load, save=folder, **more)) == 0
    return measured(folder)


def test_losses_equal_those_of_the_run(data: str, run: Path, imported: Path, tmp_path: Path) -> None:
    """With --finetune the original has no optimizer state either."""
    expected = go_on(data, tmp_path / "a", run, finetune=True)
    found = go_on(data, tmp_path / "b", imported)
    assert len(expected) == 7 and all(math.isfinite(record[2]) for record in expected)
    assert found == expected


@pytest.mark.slow
def test_an_import_can_be_finetuned(data: str, run: Path, imported: Path, tmp_path: Path) -> None:
    expected = go_on(data, tmp_path / "a", run, finetune=True)
    assert go_on(data, tmp_path / "c", imported, finetune=True) == expected


def train_as_a_rank(rank: int, world_size: int, words: list[str]) -> None:
    assert pretrain.main(words) == 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}],
                         ids=["tp2", "pp2"])  # fmt: skip
def test_losses_equal_those_of_the_run_in_other_layouts(
    data: str, run: Path, imported: Path, layout: dict[str, int], tmp_path: Path
) -> None:
    found = []
    for name, load in (("a", run), ("b", imported)):
        words = flags(
            data, load=load, save=tmp_path / name, finetune=name == "a" or None, train_iters=2, log_interval=1,
            eval_interval=1, make_vocab_size_divisible_by=31, **layout,
        )  # fmt: skip
        run_distributed(train_as_a_rank, 2, words, timeout=100)
        found.append(measured(tmp_path / name))
    assert found[0] == found[1] and len(found[0]) >= 4


def test_a_chosen_iteration_goes_on_and_resumes(
    data: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The schedule and the data go on there; the run that begins so is resumed with its optimizer state."""
    export(run, tmp_path / "hf")
    file = tmp_path / "mine.yaml"
    file.write_text("global-batch-size: 4\nlr: 0.03\nsave: elsewhere\n")
    options = ImportOptions(
        str(tmp_path / "hf"), str(tmp_path / "run"), config=str(file), iteration=4, make_vocab_size_divisible_by=1
    )
    folder = import_export(options)
    assert folder.name == "iter_0000004"
    changes: dict[str, Any] = {"save": tmp_path / "run", "resume": True, "log_interval": 1, "num_workers": None}
    capfd.readouterr()
    assert start(flags(data, exit_interval=6, **changes, **UNPADDED)) == 0
    said = capfd.readouterr().out
    assert "iteration 4, 16 samples" in said
    assert "iter_0000004 was imported and has no optimizer state: the optimizer and the random states begin" in said
    assert start(flags(data, exit_interval=8, **changes, **UNPADDED)) == 0
    assert "has no optimizer state" not in capfd.readouterr().out
    assert start(flags(data, save=tmp_path / "same", load=folder, exit_interval=8, log_interval=1, **UNPADDED)) == 0
    assert measured(tmp_path / "same")[-1] == measured(tmp_path / "run")[-1]
    rates = {r["iteration"]: r["lr"] for r in read_records(tmp_path / "same" / "metrics.jsonl") if r["kind"] == "train"}
    assert rates[5] == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi * 4 / 20)), rel=1e-12)


def test_another_option_of_the_memory_is_told(
    data: str, imported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No weight would tell; and a window of training steps only is no other model."""
    changes: dict[str, Any] = {"train_iters": 1, "eval_iters": 0, "log_dir": tmp_path, "fwpkm_topk": 4}
    windows = {"window_size": "3,0", "fwpkm_pswa_probability": 0.5}
    assert start(flags(data, load=imported, **changes, **windows, **UNPADDED)) == 0
    said = capfd.readouterr().out
    assert "changed: --fwpkm-topk is 2 in the checkpoint and 4 in this run" in said
    assert start(flags(data, load=imported, hidden_size=64, **UNPADDED)) == 1
    assert "--hidden-size is 32 in the checkpoint and 64 in this run" in capfd.readouterr().err


@pytest.mark.parametrize("exported", ["initial", "none"])
def test_initial_fast_weights_are_imported_as_such(run: Path, exported: FastWeights, tmp_path: Path) -> None:
    """Out of the files, or drawn anew where these have none."""
    export(run, tmp_path / "hf", fast_weights=exported)
    folder = import_export(ImportOptions(str(tmp_path / "hf"), str(tmp_path / "run")))
    source = read_checkpoint(run)
    tables = read_checkpoint(folder).fast[2].tables
    from megatron_fwpkm.conversion.weight_rules import KIND_TABLES

    for name, table in KIND_TABLES["fwpkm"](source.config, 2).items():
        assert torch.equal(tables[name], table) and not torch.equal(source.fast[2].tables[name], table)


def test_another_tokenizer_is_refused_by_its_size(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The export of a run without tokenizer files does not say which ids mean what, but how many there are."""
    monkeypatch.setattr(test_pretrain, "NUMBERS", 55)
    assert start(flags(write_dataset(tmp_path / "other"), load=imported, **UNPADDED)) == 1
    assert "its model has 61 token embeddings, but the tokenizer has 56 ids" in capfd.readouterr().err


@pytest.mark.slow
def test_the_other_engine_starts_from_it(data: str, run: Path, imported: Path, tmp_path: Path) -> None:
    """ZeRO shards weights that no engine has written; its losses are those from the run's own checkpoint."""
    more = {"engine": "deepspeed", "zero_stage": 3, "train_iters": 2, "log_interval": 1, "eval_interval": 1, **UNPADDED}
    for name, load in (("a", run), ("b", imported)):
        words = flags(data, load=load, save=tmp_path / name, finetune=name == "a" or None, **more)
        assert start(words) == 0
    assert measured(tmp_path / "a") == measured(tmp_path / "b") and len(measured(tmp_path / "a")) == 5
