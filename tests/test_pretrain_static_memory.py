"""A model with a static memory, from pretrain.py on two tensor-parallel ranks to an export."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.parameter_counts import num_parameters
from megatron_fwpkm.conversion.export import export
from megatron_fwpkm.conversion.verify import verify
from megatron_fwpkm.training.dry_run import dry_run
from tests.layers.megatron import initialize
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import NUMBERS, flags, losses, start, write_dataset

STATIC: dict[str, Any] = {
    "pkm_layer_numbers": "1 2", "pkm_num_heads": 2, "pkm_num_subkeys": 8, "pkm_key_dim": 8, "pkm_value_dim": 16,
    "pkm_topk": 4, "pkm_values_lr_mult": 2.0, "train_iters": 4, "log_interval": 1, "eval_iters": 0,
}  # fmt: skip


def train(rank: int, world_size: int, argv: list[str]) -> int:
    return start(argv)


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.slow
def test_from_two_ranks_to_an_export(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_dataset(tmp_path / "numbers")
    whole, cut, dense = tmp_path / "whole", tmp_path / "cut", tmp_path / "dense"
    assert start(flags(data, **STATIC, save=whole)) == 0
    assert "memories at layer 2; static memories at layers 1, 2" in "".join(capfd.readouterr())
    two = flags(data, **STATIC, save=cut, exit_interval=2, tensor_model_parallel_size=2)
    assert run_distributed(train, 2, two) == [0, 0]
    assert start(flags(data, **STATIC, save=cut, resume=True)) == 0
    expected, found = losses(whole), losses(cut)
    assert found.keys() == expected.keys() == {1, 2, 3, 4}
    assert all(found[step] == pytest.approx(expected[step], rel=3e-3) for step in expected)

    stored, config = read_checkpoint(whole), parse_pretrain(flags(data, **STATIC)).config
    slow = [tensor.numel() for name, tensor in stored.slow.items() if not name.endswith("_extra_state")]
    assert num_parameters(config, NUMBERS + 1) == sum(slow)
    console = Console(file=io.StringIO(), width=160)
    dry_run(parse_pretrain([*two, "--dry-run"]), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "PKM 64 slots x 16, 2 heads top-4" in said and "static memory" in said

    initialize()
    folder = export(cut, tmp_path / "hf")
    checks = verify(cut, folder, lengths=[1, 19])
    assert all(check.passed for check in checks), "\n".join(check.row() for check in checks)
    card = (folder / "README.md").read_text()
    assert "In 2 layers a static product key memory of 64 slots, which reading does not change, takes the place" in card
    assert {"static_memory.py", "product_key_memory_read.py"} <= {path.name for path in folder.iterdir()}

    plain = {name: None for name in STATIC if name.startswith("pkm_")}
    again = flags(data, **STATIC | plain, save=dense, load=whole, finetune=True)
    assert start(again) == 0
    assert "layers 1 2 have an MLP in this run and a static memory in the checkpoint" in "".join(capfd.readouterr())
    embedding = "embedding.word_embeddings.weight"
    assert not torch.equal(read_checkpoint(dense).slow[embedding], stored.slow[embedding])
