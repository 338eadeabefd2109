"""One seed is one model in every layout, and a checkpoint of one layout loads into another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.layers.megatron import VOCABULARY, initialize, tiny
from tests.spawned_ranks import run_distributed

pytestmark = pytest.mark.layouts

_OPTIONS: dict[str, Any] = {
    "model": {"num_layers": 4, "layer_pattern": "fa", "untie_embeddings_and_output_weights": True}
}


def _metadata() -> dict[str, Any]:
    from megatron.core import parallel_state

    return {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def _save_and_restage(rank: int, world_size: int, folder: str) -> dict[str, torch.Tensor]:
    """Save a model over two tensor-parallel ranks; then return what a pipeline of two stages starts with."""
    initialize(tensor_parallel=world_size)
    from megatron.core import dist_checkpointing, parallel_state

    from megatron_fwpkm.models.builder import build_model

    model = build_model(tiny(**_OPTIONS), VOCABULARY)
    dist_checkpointing.save(model.sharded_state_dict(metadata=_metadata()), folder)

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(1, pipeline_model_parallel_size=world_size)
    stage = build_model(tiny(**_OPTIONS), VOCABULARY, pre_process=rank == 0, post_process=rank == world_size - 1)
    renamed = {}
    for name, parameter in stage.named_parameters():
        parts = name.split(".")
        if parts[:2] == ["decoder", "layers"]:
            parts[2] = str(int(parts[2]) + 2 * rank)
        renamed[".".join(parts)] = parameter.detach()
    for index, layer in enumerate(stage.decoder.layers):
        if hasattr(layer.memory, "values"):
            renamed[f"values {index + 2 * rank}"] = layer.memory.values
    return renamed


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """A checkpoint of two tensor-parallel ranks, and the weights of two pipeline stages."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, run_distributed(_save_and_restage, 2, str(folder), timeout=100)


def _serial():
    from megatron_fwpkm.models.builder import build_model

    return build_model(tiny(**_OPTIONS), VOCABULARY)


def test_pipeline_stages_start_as_parts_of_the_serial_model(layouts) -> None:
    model = _serial()
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected |= {f"values {m - 1}": model.decoder.layers[m - 1].memory.values for m in (2, 3)}
    stages = layouts[1]
    assert set(stages[0]) | set(stages[1]) == set(expected) and not set(stages[0]) & set(stages[1])
    for name, tensor in (stages[0] | stages[1]).items():
        assert torch.equal(tensor, expected[name]), name


def test_checkpoint_of_two_ranks_loads_into_one(layouts) -> None:
    from megatron.core import dist_checkpointing

    model = _serial()
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state = dist_checkpointing.load(model.sharded_state_dict(metadata=_metadata()), str(layouts[0]))
    model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert not [name for name in state if "values" in name or "sub_keys" in name]
