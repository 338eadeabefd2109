"""pretrain.py with gated delta nets: any layout learns the same, resumes in another one, exports, and is verified."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.config.checkpoint_size import checkpoint_bytes
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.parameter_counts import num_parameters
from megatron_fwpkm.conversion.export import export
from megatron_fwpkm.conversion.verify import verify
from megatron_fwpkm.training.dry_run import dry_run
from tests.layers.megatron import initialize
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import NUMBERS, flags, losses, start, write_dataset
from tests.training.double_precision import double_precision

LINEAR: dict[str, Any] = {
    "layer_pattern": "gdn,fa", "linear_key_head_dim": 8, "linear_value_head_dim": 4, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "train_iters": 4, "log_interval": 1, "eval_iters": 0,
    "use_distributed_optimizer": True,
}  # fmt: skip


@double_precision()
def train(rank: int, world_size: int, runs: list[list[str]]) -> list[int]:
    """pretrain.py on one of several ranks, in float64."""
    return [start(argv) for argv in runs]


@pytest.mark.slow
def test_two_ranks_resume_as_one_and_the_export_is_the_model(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "numbers")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(0, 1, [flags(data, **LINEAR, save=whole)]) == [0]
    two = flags(data, **LINEAR, save=cut, exit_interval=2, tensor_model_parallel_size=2, sequence_parallel=True)
    assert run_distributed(train, 2, [two]) == [[0], [0]]
    assert train(0, 1, [flags(data, **LINEAR, save=cut, resume=True)]) == [0]
    expected, found = losses(whole), losses(cut)
    assert found.keys() == expected.keys() == {1, 2, 3, 4}
    assert all(found[step] == pytest.approx(expected[step], rel=1e-7) for step in expected), (found, expected)

    stored = read_checkpoint(whole)
    config = parse_pretrain(flags(data, **LINEAR)).config
    count = sum(tensor.numel() for name, tensor in stored.slow.items() if not name.endswith("_extra_state"))
    assert num_parameters(config, NUMBERS + 1) == count
    assert checkpoint_bytes(config, NUMBERS + 1, 1).weights == 4 * count
    console = Console(file=io.StringIO(), width=140)
    dry_run(parse_pretrain([*two, "--dry-run"]), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "gdn: all tokens before, in a state of 4 heads x 8 x 4" in said

    one = tmp_path / "one"
    assert start(flags(data, **LINEAR, save=one)) == 0
    initialize()
    folder = export(one, tmp_path / "hf")
    checks = verify(one, folder, lengths=[1, 19, 33])
    assert all(check.passed for check in checks), "\n".join(check.row() for check in checks)
    assert "In 1 of 2 layers a gated delta net carries the text" in (folder / "README.md").read_text()
    assert (folder / "gated_delta_net_delta_net.py").is_file()


@pytest.mark.slow
def test_deepspeed_learns_what_one_process_learns(tmp_path: Path) -> None:
    """The layouts of Megatron's engine are in tests/training/test_kind_layouts.py; here logs are compared."""
    data = write_dataset(tmp_path / "numbers")
    two = {"engine": "deepspeed", "tensor_model_parallel_size": 2, "use_distributed_optimizer": None}
    assert train(0, 1, [flags(data, **LINEAR, save=tmp_path / "serial")]) == [0]
    argv = flags(data, **LINEAR | two, save=tmp_path / "other")
    assert run_distributed(train, 2, [argv], timeout=200) == [[0]] * 2
    expected, found = losses(tmp_path / "serial"), losses(tmp_path / "other")
    assert all(found[step] == pytest.approx(expected[step], rel=1e-7) for step in expected), (found, expected)
