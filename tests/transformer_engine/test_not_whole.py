"""Packages that are there and cannot be used: a run takes local layers and says why, or refuses in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_pretrain import ROOT, flags, write_dataset
from tests.transformer_engine.broken import foreign_apex, half_installed_transformer_engine

RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "pretrain.py"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with both packages."""
    folder = tmp_path_factory.mktemp("packages")
    half_installed_transformer_engine(folder)
    foreign_apex(folder)
    return folder


def run(command: list[str], packages: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


def test_the_packages_are_what_they_are_taken_for(packages: Path) -> None:
    """Otherwise the tests below would pass with anything."""
    for program, error in (("import transformer_engine", "RuntimeError"), ("import apex.optimizers", "ModuleNotFound")):
        ended = run([sys.executable, "-c", program], packages)
        assert ended.returncode == 1 and error in ended.stderr
    assert run([sys.executable, "-c", "import megatron.core.transformer.mlp"], packages).returncode == 1


@pytest.mark.slow
def test_a_run_trains_with_local_layers_and_says_why(dataset: str, packages: Path, tmp_path: Path) -> None:
    words = flags(dataset, train_iters=2, eval_iters=0, log_interval=1, log_dir=tmp_path)
    ended = run([sys.executable, "pretrain.py", *words], packages)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    layers, optimizer = (next(line for line in ended.stdout.splitlines() if line.startswith(part))
                         for part in ("layers", "optimizer"))  # fmt: skip
    assert "Megatron-Core and this project" in layers
    assert "Transformer Engine is installed but does not work (RuntimeError: only the metapackage" in layers
    assert "torch AdamW" in optimizer and "the package apex is not NVIDIA's" in optimizer


@pytest.mark.parametrize("flag", ["--transformer-impl transformer_engine", "--attention-backend te"])
def test_what_is_asked_for_is_refused_in_one_line(dataset: str, packages: Path, tmp_path: Path, flag: str) -> None:
    words = [*flags(dataset, save=tmp_path / "run"), *flag.split()]
    ended = run([sys.executable, "pretrain.py", *words], packages)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "Transformer Engine" in line]
    assert f"{flag}: Transformer Engine is installed but does not work (RuntimeError: only the metapackage" in line
    assert "remove the flag" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_every_rank_is_refused(dataset: str, packages: Path, tmp_path: Path) -> None:
    words = flags(dataset, save=tmp_path / "run", transformer_impl="transformer_engine", tensor_model_parallel_size=2)
    ended = run([*RANKS, *words], packages)
    assert ended.returncode != 0
    lines = (ended.stdout + ended.stderr).splitlines()
    said = [line for line in lines if "--transformer-impl transformer_engine:" in line]
    assert len(said) == 1 and "of 2: " in said[0] and "does not work (RuntimeError" in said[0]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_the_same(dataset: str, packages: Path) -> None:
    ended = run([sys.executable, "pretrain.py", *flags(dataset), "--dry-run"], packages)
    assert ended.returncode == 0
    text = " ".join(ended.stdout.split())
    assert "Transformer Engine is installed but does not work (RuntimeError: only the metapackage" in text
