"""One seed is one model in every layout, and a checkpoint of one layout loads into another."""

from __future__ import annotations

import pytest
import torch

from tests.layers.megatron import VOCABULARY, tiny
from tests.models.two_ranks import STAGED, TwoRanks, store_metadata

pytestmark = pytest.mark.layouts


def _serial():
    from megatron_fwpkm.models.builder import build_model

    return build_model(tiny(**STAGED), VOCABULARY)


def test_pipeline_stages_start_as_parts_of_the_serial_model(two_ranks: TwoRanks) -> None:
    model = _serial()
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected |= {f"values {m - 1}": model.decoder.layers[m - 1].memory.values for m in (2, 3)}
    stages = two_ranks().stages
    assert set(stages[0]) | set(stages[1]) == set(expected) and not set(stages[0]) & set(stages[1])
    for name, tensor in (stages[0] | stages[1]).items():
        assert torch.equal(tensor, expected[name]), name


def test_checkpoint_of_two_ranks_loads_into_one(two_ranks: TwoRanks) -> None:
    from megatron.core import dist_checkpointing

    model = _serial()
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state = dist_checkpointing.load(model.sharded_state_dict(metadata=store_metadata()), two_ranks().folder)
    model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert not [name for name in state if "values" in name or "sub_keys" in name]
