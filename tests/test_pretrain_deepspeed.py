"""pretrain.py with --engine deepspeed: trained, resumed and read like a run of Megatron's engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pretrain
from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.training.metrics import read_records
from tests.test_pretrain import flags, write_dataset


def test_a_run_trains_resumes_and_is_read_like_another(tmp_path: Path) -> None:
    """The checkpoint of ZeRO-3, whose weights are gathered for it, holds what one of Megatron's engine would."""
    dataset = write_dataset(tmp_path / "numbers")
    engines = {"megatron": [], "deepspeed": ["--engine", "deepspeed", "--zero-stage", "3"]}
    for name, more in engines.items():
        words = [*flags(dataset, save=tmp_path / name, train_iters=4, log_interval=1, save_interval=2), *more]
        assert run_cli(pretrain.main, [*words, "--exit-interval", "2"]) == 0
        assert run_cli(pretrain.main, [*words, "--resume"]) == 0
    one, other = (read_records(tmp_path / name / "metrics.jsonl") for name in engines)
    losses = [[record["loss"] for record in found if "loss" in record] for found in (one, other)]
    assert len(losses[0]) >= 4 and losses[1] == pytest.approx(losses[0], rel=1e-5)
    megatron, deepspeed = (read_checkpoint(tmp_path / name) for name in engines)
    assert deepspeed.iteration == 4 and deepspeed.slow.keys() == megatron.slow.keys()
    for key, tensor in megatron.slow.items():
        torch.testing.assert_close(deepspeed.slow[key], tensor, rtol=1e-3, atol=1e-5, msg=key)
    assert (tmp_path / "deepspeed" / "iter_0000004" / "deepspeed" / "layout.json").is_file()
