"""Going back under every kind of run: what a killed run would load and train on is what a rewound one does."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.evaluation.training_curves.history import read_history
from megatron_fwpkm.training import checkpointing
from megatron_fwpkm.training.metrics import JsonRecord, read_records
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import assert_same_checkpoint, start, write_dataset
from tests.training.test_recovery import rewinding, spoil_data

pytestmark = pytest.mark.slow
TIMES = {"seconds", "tokens_per_second", "memory_gib"}

ZERO = {"use_distributed_optimizer": True, "bf16": True, "async_save": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "async": (1, {"async_save": True, "num_workers": 1}),
    "rampup": (1, {"rampup_batch_size": "2 2 8"}),
    "zero-1": (2, ZERO),
    "tensors": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pipeline": (2, {"pipeline_model_parallel_size": 2}),
    "all": (4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "async_save": True}),
}
DEEPSPEED = {f"deepspeed-{stage}": (2, {"engine": "deepspeed", "zero_stage": stage}) for stage in (0, 1, 2, 3)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


def train(rank: int, size: int, spoilt: int, *argvs: list[str]) -> list[int]:
    """Runs with two spoilt samples in iteration 5; the second is given the checkpoint that the first went back to."""
    with pytest.MonkeyPatch.context() as patch:
        spoil_data(patch, spoilt, spoilt + 2)
        first, second = argvs
        save = [Path(argv[argv.index("--save") + 1]) for argv in argvs]
        statuses = [start(first)]
        if rank == 0:
            shutil.copytree(save[0] / "iter_0000003", save[1] / "iter_0000003")
        return [*statuses, start(second)]


def numbers(folder: Path) -> list[JsonRecord]:
    """What was trained and evaluated after the checkpoint, without times."""
    records = [r for r in read_records(folder / "metrics.jsonl") if r["iteration"] > 3]
    records = [record for record in records if record["kind"] in ("train", "evaluation")]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("layout", [*LAYOUTS, *DEEPSPEED])
def test_going_back_is_a_restart_from_the_checkpoint(dataset: str, tmp_path: Path, layout: str) -> None:
    size, chosen = (LAYOUTS | DEEPSPEED)[layout]
    if layout in DEEPSPEED:
        pytest.importorskip("deepspeed")
    more = {"split": "90,10,0", "eval_iters": 1, "eval_interval": 2, "global_batch_size": 4, **chosen}
    folders = tmp_path / "whole", tmp_path / "again"
    argvs = [rewinding(dataset, folder, resume=folder.name == "again" or None, **more) for folder in folders]
    statuses = run_distributed(train, size, 8 if layout == "rampup" else 18, *argvs, timeout=250)
    assert statuses == [[0, 0]] * size
    whole, again = (numbers(folder) for folder in folders)
    assert whole == again and [r["iteration"] for r in whole if r["kind"] == "train"] == [4, 5, 6, 7, 8, 9]
    assert [r["iteration"] for r in whole if r["kind"] == "evaluation"] == [4, 6, 8, 9]
    assert all(math.isfinite(record["loss"]) for record in whole)
    assert_same_checkpoint(*(read_checkpoint(folder) for folder in folders))
    (event,) = read_history(folders[0]).events
    assert event[0] == 3 and event[1].startswith("rewind: iteration")


def skip(rank: int, size: int, argv: list[str]) -> int:
    """A run with two spoilt samples in iteration 5."""
    with pytest.MonkeyPatch.context() as patch:
        spoil_data(patch, 18, 20)
        return start(argv)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("layout", ["zero-1", "pipeline"])
def test_every_rank_skips_the_same_step(dataset: str, tmp_path: Path, layout: str) -> None:
    """Only the last stage, or one of two replicas, sees that the loss is not finite."""
    size, chosen = LAYOUTS[layout]
    argv = rewinding(dataset, tmp_path, on_nan="skip", **chosen)
    assert run_distributed(skip, size, argv, timeout=250) == [0] * size
    records = read_records(tmp_path / "metrics.jsonl")
    assert [r["iteration"] for r in records if r["kind"] == "skip"] == [5]
    trained = [(r["iteration"], math.isfinite(r["loss"])) for r in records if r["kind"] == "train"]
    assert trained == [(iteration, True) for iteration in (1, 2, 3, 4, 6, 7, 8, 9)]


def test_a_kill_in_the_middle_of_going_back(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`latest` names the earlier checkpoint, but nobody has written yet which data is left out."""
    spoil_data(monkeypatch, 18, 20)
    assert start(rewinding(dataset, tmp_path / "whole")) == 0

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "amend_record", die)
        assert start(rewinding(dataset, tmp_path / "killed")) == 130
    assert start(rewinding(dataset, tmp_path / "killed", resume=True)) == 0
    assert_same_checkpoint(*(read_checkpoint(tmp_path / name) for name in ("whole", "killed")))
    (event,) = read_history(tmp_path / "killed").events
    assert event[0] == 3


def test_a_resumed_run_ends_at_the_limit_of_the_whole_run(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil_data(monkeypatch, 18, 20)
    assert start(rewinding(dataset, tmp_path, exit_interval=6, on_nan_limit=1)) == 0
    spoil_data(monkeypatch, 36, 1000)
    assert start(rewinding(dataset, tmp_path, resume=True, on_nan_limit=1)) == 1
    assert "--on-nan-limit 1 is used up" in capfd.readouterr().err
