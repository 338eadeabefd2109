"""A report names every layer, and a table with a single NaN does not slip through."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_fwpkm.engines.memory_report import collect_memory_report, is_finite
from megatron_fwpkm.ops import FastWeightState

CPU = torch.device("cpu")


class Memory:
    def __init__(self, layer_number: int, loss: float = 1.0) -> None:
        self.layer_number = layer_number
        self.state = FastWeightState(torch.zeros(1, 2, 4, 3), torch.zeros(16, 8))
        self.loss = loss

    def statistics_on_device(self) -> torch.Tensor:
        return torch.tensor([0.5, 0.25, 0.1, self.loss, -2.0], dtype=torch.float64)

    def fast_weights(self) -> FastWeightState:
        return self.state


def test_healthy_layers() -> None:
    report = collect_memory_report([Memory(7, 3.0), Memory(3)], (3, 7), CPU)
    assert list(report.layers) == [3, 7]
    assert report.worst_memorization_loss == {3: 1.0, 7: 3.0}
    assert report.finite_tables == {3: True, 7: True}
    assert report.as_record()["7"]["gate_mean"] == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_is_seen(bad: float) -> None:
    values, keys, loss = Memory(3), Memory(7), Memory(9, bad)
    values.state.values[5, 2] = bad
    keys.state.sub_keys[0, 1, 2, 0] = bad
    assert not is_finite(values.state.values)
    report = collect_memory_report([values, keys, loss], (3, 7, 9), CPU)
    assert report.finite_tables == {3: False, 7: False, 9: True}
    assert math.isnan(report.worst_memorization_loss[9])


def test_a_model_without_memories_has_an_empty_report() -> None:
    assert collect_memory_report([], (), CPU).as_record() == {}
