"""The bytes of a checkpoint that --dry-run announces are those that lie on disk."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.checkpoint_size import checkpoint_bytes, checkpoints_on_disk
from megatron_fwpkm.config.derived import table_bytes
from megatron_fwpkm.config.loading import parse_pretrain
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import ROOT, flags, start, write_dataset

SIZES = {
    "hidden_size": 256,
    "fwpkm_num_subkeys": 96,
    "fwpkm_value_dim": 64,
    "eval_iters": 0,
    "split": "1,0,0",
    "train_iters": 2,
    "save_interval": 2,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


def on_disk(folder: Path) -> dict[str, int]:
    """Bytes of slow weights with their optimizer, and of fast weights."""
    return {part: sum(path.stat().st_size for path in (folder / part).rglob("*")) for part in ("model", "fast_weights")}


def assert_announced(argv: list[str], folder: Path, processes: int = 1) -> None:
    from megatron_fwpkm.training.dry_run import vocabulary_size

    config = parse_pretrain(argv).config
    announced = checkpoint_bytes(config, vocabulary_size(config), processes)
    found = on_disk(folder)
    assert announced.weights + announced.optimizer == pytest.approx(found["model"], rel=0.03)
    assert announced.fast_weights == pytest.approx(found["fast_weights"], rel=0.01)
    whole = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert announced.total == pytest.approx(whole, rel=0.03)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"bf16": True, "fwpkm_table_dtype": "bf16"},
        {"use_distributed_optimizer": True, "untie_embeddings_and_output_weights": True},
    ],
)
def test_bytes_of_a_checkpoint(dataset: str, tmp_path: Path, more: dict[str, Any]) -> None:
    argv = flags(dataset, save=tmp_path / "run", log_dir=tmp_path, **{**SIZES, **more})
    assert start(argv) == 0
    assert_announced(argv, tmp_path / "run" / "iter_0000002")


def train(rank: int, world_size: int, argv: list[str], folder: str) -> None:
    assert start(argv) == 0
    if rank == 0:
        assert_announced(argv, Path(folder), world_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"bf16": True, "use_distributed_optimizer": True},
        {"fwpkm_save_replicas": 1},
        {"fwpkm_dp_sync": "average", "fwpkm_dp_sync_interval": 2, "async_save": True},
        {"pipeline_model_parallel_size": 2, "fwpkm_layer_numbers": "1 2"},
        {"tensor_model_parallel_size": 2},
    ],
)
def test_bytes_of_a_checkpoint_of_two_ranks(dataset: str, tmp_path: Path, more: dict[str, Any]) -> None:
    """Tables of both replicas or of one, slow weights once; what is tied over stages counts once."""
    argv = flags(dataset, save=tmp_path / "run", log_dir=tmp_path, **{**SIZES, **more})
    run_distributed(train, 2, argv, str(tmp_path / "run" / "iter_0000002"), timeout=120)


def test_the_largest_part_of_a_rank() -> None:
    config = parse_pretrain(flags("none", **{**SIZES, "fwpkm_layer_numbers": "2"})).config
    whole = checkpoint_bytes(config, 500, 1)
    assert whole.largest_rank == whole.total
    stages = replace(config, parallel=replace(config.parallel, pipeline_model_parallel_size=2))
    parts = checkpoint_bytes(stages, 500, 4)
    assert parts.fast_weights == 2 * whole.fast_weights
    assert whole.fast_weights < parts.largest_rank < whole.largest_rank


def test_replicas_that_are_left_out() -> None:
    """All, some, never more than there are; one where every save follows an averaging."""

    def replicas(iteration: int | None = None, **more: Any) -> int:
        """Of 8 processes."""
        found = checkpoint_bytes(parse_pretrain(flags("none", **{**SIZES, **more})).config, 500, 8, iteration)
        assert found.fast_weights == found.replicas * table_bytes(parse_pretrain(flags("none", **SIZES)).config)
        return found.replicas

    assert [replicas(fwpkm_save_replicas=count) for count in ("all", 8, 3, 1, 100)] == [8, 8, 3, 1, 8]
    averaged = {"fwpkm_dp_sync": "average", "train_iters": 12, "save_interval": 4, "fwpkm_save_replicas": 3}
    assert replicas(**averaged, fwpkm_dp_sync_interval=2) == 1
    assert replicas(**averaged, fwpkm_dp_sync_interval=8) == 3
    assert replicas(8, **averaged, fwpkm_dp_sync_interval=8) == 1
    assert replicas(**{**averaged, "train_iters": 13}, fwpkm_dp_sync_interval=4) == 3  # the last one is not averaged


@pytest.mark.parametrize(
    ("iterations", "interval", "keep", "retain", "count"),
    [
        (100, None, 2, None, 1),
        (100, 10, 0, None, 10),
        (95, 10, 0, None, 10),
        (100, 10, 2, None, 3),
        (20, 10, 5, None, 2),
        (100, 10, 2, 20, 3 + 3),  # 20, 40 and 60 beside 80 and 90, while 100 is written
    ],
)
def test_checkpoints_that_stay(
    iterations: int, interval: int | None, keep: int, retain: int | None, count: int
) -> None:
    base = PretrainConfig()
    config = replace(
        base,
        training=replace(base.training, train_iters=iterations),
        checkpoint=replace(base.checkpoint, save_interval=interval, keep_last=keep, save_retain_interval=retain),
    )
    assert checkpoints_on_disk(config) == count


def test_dry_run_prints_them() -> None:
    argv = flags("none", save="runs/x", **{**SIZES, "keep_last": 2, "train_iters": 100})
    line = next(line for line in _shown(argv).splitlines() if line.startswith("Checkpoint: "))
    assert re.fullmatch(
        r"Checkpoint: [\d.]+ MiB = [\d.]+ MiB of slow weights \+ [\d.]+ MiB of optimizer states \+ [\d.]+ MiB of fast "
        r"weights \(1 replica\), up to [\d.]+ MiB written by one rank; at most 3 checkpoints in --save, [\d.]+ MiB",
        line,
    ), line
    assert "Checkpoint" not in _shown(flags("none", **SIZES))


def test_dry_run_of_512_replicas_of_the_papers_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three memories of 512 MiB and their sub-keys: what N to choose, in bytes and seconds."""
    monkeypatch.setenv("WORLD_SIZE", "512")
    paper = ["--config", str(ROOT / "examples" / "paper" / "base_112m.yaml"), "--global-batch-size", "4096"]
    paper += ["--save", "runs/x"]

    def lines(*more: str) -> list[str]:
        """What is said of checkpoints."""
        return [line for line in _shown([*paper, *more]).splitlines() if line.startswith(("Checkpoint: ", "Saving "))]

    everyone, time = lines()
    assert "769.5 GiB of fast weights (512 replicas, 1.5 GiB each)" in everyone
    assert re.match(r"Saving takes \d\.\d s if that rank writes 1 GiB/s, and 771 s if the storage takes 1 GiB/s", time)
    assert "12.0 GiB of fast weights (8 of 512 replicas, 1.5 GiB each)" in lines("--fwpkm-save-replicas", "8")[0]
    assert "1.5 GiB of fast weights (1 of 512 replicas)" in lines("--fwpkm-dp-sync", "average")[0]


def _shown(argv: list[str]) -> str:
    from megatron_fwpkm.training.dry_run import dry_run

    text = io.StringIO()
    console = Console(file=text, width=200, highlight=False)
    assert dry_run(parse_pretrain([*argv, "--dry-run"]), console) == 0
    return text.getvalue()
