"""A checkpoint of Transformer Engine's layers is, name by name, that of local layers, and so is its export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.checkpoint.manager import resolve_checkpoint
from megatron_fwpkm.checkpoint.record import MODEL_FOLDER
from megatron_fwpkm.conversion.export import export
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import assert_same_checkpoint, flags, start, write_dataset
from tests.transformer_engine.pretended import needs_sources
from tests.transformer_engine.runs import saved_again

pytestmark = needs_sources


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of a short run with local layers, and the same written by Transformer Engine's."""
    folder = tmp_path_factory.mktemp("runs")
    words = flags(write_dataset(folder / "numbers"), train_iters=3, eval_iters=0, save=folder / "local")
    assert start([*words, "--add-bias-linear"]) == 0
    local, engine = resolve_checkpoint(folder / "local"), folder / "engine"
    (linears,) = run_distributed(saved_again, 1, local, engine, timeout=200)
    assert {"TELayerNormColumnParallelLinear", "TERowParallelLinear", "TELinear"} <= set(linears)
    return local, engine


def _tensors(checkpoint: Path) -> set[str]:
    stored = FileSystemReader(checkpoint / MODEL_FOLDER).read_metadata().state_dict_metadata
    return {name for name in stored if "_extra_state" not in name}


def test_all_names_on_disk_are_those_of_local_layers(checkpoints: tuple[Path, Path]) -> None:
    local, engine = map(_tensors, checkpoints)
    assert local == engine
    assert "optimizer.state.exp_avg.decoder.layers.0.input_layernorm.weight" in local
    assert not [name for name in engine if "layer_norm_" in name]


def test_all_tensors_are_the_same(checkpoints: tuple[Path, Path]) -> None:
    local, engine = map(read_checkpoint, checkpoints)
    assert_same_checkpoint(local, engine)
    assert any(tensor.abs().sum() > 0 for name, tensor in local.slow.items() if name.endswith("input_layernorm.weight"))
    assert local.slow["decoder.layers.0.mlp.linear_fc1.bias"].dtype == torch.float32


def test_exports_are_equal_files(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = (export(checkpoint, tmp_path / name) for checkpoint, name in zip(checkpoints, "ab", strict=True))
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(other) for file in other.rglob("*") if file.is_file())
    assert Path("model.safetensors") in files
    different = [str(file) for file in files if (one / file).read_bytes() != (other / file).read_bytes()]
    assert different == []
