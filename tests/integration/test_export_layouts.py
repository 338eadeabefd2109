"""An export has the same bytes from any layout of processes and from either engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.conversion.export import export
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import flags, start, write_dataset

MODEL = {
    "num_layers": 4, "fwpkm_layer_numbers": "1 4", "train_iters": 1, "eval_iters": 0, "lr_warmup_iters": 0,
    "untie_embeddings_and_output_weights": True,
}  # fmt: skip
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor": (2, {"tensor_model_parallel_size": 2}),
    "pipeline": (2, {"pipeline_model_parallel_size": 2}),
    "virtual": (2, {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}),
    "zero": (2, {"engine": "deepspeed", "zero_stage": 3}),
}


def train(rank: int, world_size: int, argv: list[str]) -> int:
    """pretrain.py on one of several ranks."""
    return start(argv)


def weights(checkpoint: Path, folder: Path) -> dict[str, bytes]:
    """The files of weights of an export, by name."""
    exported = export(checkpoint, folder, fast_weights="initial", max_shard_size="20KB")
    return {file.name: file.read_bytes() for file in exported.glob("model*")}


@pytest.mark.slow
@pytest.mark.layouts
def test_every_layout_gives_the_same_files(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "numbers")
    assert start(flags(dataset, save=tmp_path / "one", **MODEL)) == 0
    expected = weights(tmp_path / "one", tmp_path / "hf")
    assert len(expected) > 3 and "model.safetensors.index.json" in expected
    for name, (size, layout) in LAYOUTS.items():
        given = MODEL | layout | {"load": tmp_path / "one", "finetune": True, "lr": 1e-30}  # changes no weight
        assert run_distributed(train, size, flags(dataset, save=tmp_path / name, **given)) == [0] * size
        found = weights(tmp_path / name, tmp_path / f"hf_{name}")
        assert found.keys() == expected.keys() and [file for file in found if found[file] != expected[file]] == [], name
