"""Coverage, collisions, usage and ages, against counts by hand."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_fwpkm.evaluation.trace.slot_reads import SlotReads, SlotWrites
from megatron_fwpkm.evaluation.trace.slot_statistics import SlotStatistics, divergence_from_uniform


def reads(*slots: tuple[int, int], weights: tuple[float, float] = (0.75, 0.25)) -> SlotReads:
    """Tokens with two heads that read one slot each."""
    count = len(slots)
    return SlotReads(torch.tensor(slots).unsqueeze(2), torch.tensor([weights] * count).unsqueeze(2), torch.ones(count))


def writes(first: int, *slots: tuple[int, int]) -> SlotWrites:
    """What tokens with two heads write."""
    numbers = torch.arange(first, first + len(slots))
    return SlotWrites(numbers, torch.tensor(slots).unsqueeze(2), torch.ones(len(slots), 2, 1))


def test_counts_are_those_by_hand() -> None:
    found = SlotStatistics(8, 2)
    found.begin_read()
    found.read(0, reads((1, 2), (1, 1), (3, 2)))
    found.write(writes(0, (1, 2), (1, 1), (3, 2)))
    assert found.most_writers.tolist() == [0, 2, 2, 1, 0, 0, 0, 0]  # token 1 wrote slot 1 with both heads
    assert found.last.tolist() == [-1, 1, 2, 2, -1, -1, -1, -1]
    found.begin_read()
    found.read(3, reads((1, 7)))
    found.write(writes(3, (3, 7)))
    summary = found.summary()
    assert found.most_writers.tolist() == [0, 2, 2, 1, 0, 0, 0, 1]  # another read of the text does not collide
    assert (summary["written"], summary["read"], summary["collided"]) == (0.5, 0.5, 0.5)
    assert summary["reads_of_collided"] == pytest.approx((1 + 1 + 0.25 + 0.75) / 4)
    assert summary["ages"][:3] == [0, 1, 0]  # slot 1, written by token 1 and read by token 3; nobody had written 7
    assert found.age_of(torch.tensor(9), torch.tensor([3, 0])).tolist() == [6, 0]
    first, second = found.usage / 4
    assert first.tolist() == [0, 0.5625, 0, 0.1875, 0, 0, 0, 0] and second.sum() == 0.25
    for usage, told in ((first, summary["kl_to_uniform_by_head"][0]), (first + second, summary["kl_to_uniform"])):
        parts = [p / float(usage.sum()) for p in usage.tolist()]
        assert told == pytest.approx(sum(p * math.log(8 * p) for p in parts if p))
    assert summary["usage_curve"][0] == [1, pytest.approx((0.75 * 3 + 0.25) / 4)]


def test_equal_use_has_no_divergence_and_one_slot_the_most() -> None:
    assert divergence_from_uniform(torch.full((16,), 0.3, dtype=torch.float64)) == pytest.approx(0, abs=1e-12)
    assert divergence_from_uniform(torch.eye(16, dtype=torch.float64)[3]) == pytest.approx(math.log(16))
    assert divergence_from_uniform(torch.zeros(4)) == 0
