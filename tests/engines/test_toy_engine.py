"""The loop, the checkpoints and the start of a run know an engine by its protocol alone: a toy of 60 lines will do."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.engines.build import build_engine
from megatron_fwpkm.training.metrics import read_records
from megatron_fwpkm.training.pretraining import run
from tests.engines.toy_engine import ToyEngine, build_toy
from tests.test_pretrain import ROOT, flags, losses, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


def words(dataset: str, folder: Path, **changes: object) -> list[str]:
    return flags(dataset, save=folder, save_interval=5, fwpkm_layer_numbers=None, **changes)


@pytest.fixture(scope="module")
def whole(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 20 iterations."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(parse_pretrain(words(dataset, folder)), build_toy) == 0
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    ours, theirs = (torch.load(folder / "iter_0000020" / "toy.pt", weights_only=True) for folder in (one, other))
    assert ours[0].keys() == theirs[0].keys() and ours[2] == theirs[2] == 20
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in ours[0])


def test_it_trains_and_saves(whole: Path) -> None:
    kinds = [record["kind"] for record in read_records(whole / "metrics.jsonl")]
    assert kinds.count("train") == 4 and kinds.count("evaluation") == 2 and kinds[-1] == "end"
    found = [loss for loss, _ in losses(whole).values()]
    assert found[-1] < found[0]


def test_it_stops_and_resumes_bit_for_bit(dataset: str, whole: Path, tmp_path: Path) -> None:
    assert run(parse_pretrain(words(dataset, tmp_path, exit_interval=10)), build_toy) == 0
    assert not (tmp_path / "iter_0000020").exists()
    assert run(parse_pretrain(words(dataset, tmp_path, resume=True, async_save=True)), build_toy) == 0
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_it_is_killed_and_resumes_bit_for_bit(dataset: str, whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.engines.toy_engine", *words(dataset, tmp_path)]
    killed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "KILLED_AT": "13", "OMP_NUM_THREADS": "1"}, timeout=120, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "latest").read_text().strip() == "iter_0000010"
    assert run(parse_pretrain(words(dataset, tmp_path, resume=True)), build_toy) == 0
    assert_same_run(whole, tmp_path)


def test_it_has_at_most_sixty_lines() -> None:
    lines = [line for line in inspect.getsource(ToyEngine).splitlines() if line.strip()]
    assert len(lines) <= 60 and build_engine is not build_toy


def test_what_knows_the_protocol_only_does_not_import_megatron() -> None:
    modules = ("engines.base", "engines.build", "training.loop", "training.checkpointing", "distributed.startup")
    program = f"import sys; {'; '.join(f'import megatron_fwpkm.{name}' for name in modules)}; "
    program += "print([name for name in sys.modules if name.split('.')[0] == 'megatron'])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
