"""Stochastic rounding to bfloat16: the numbers of Philox, exactness, statistics, and tables in bfloat16 as a whole."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.ops.fast_weight_memory import rounding as rounding_module
from megatron_fwpkm.ops.fast_weight_memory.rounding import make_rounding, philox, round_rows


def philox_by_the_book(key: tuple[int, int], counter: tuple[int, ...], rounds: int) -> tuple[int, ...]:
    """Salmon et al. 2011, with whole numbers of Python."""
    (k0, k1), (a, b, c, d) = key, counter
    for _ in range(rounds):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ k0, second % 2**32, (first >> 32) ^ d ^ k1, first % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return a, b, c, d


def test_philox_is_that_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    # Known answers of the authors' Random123, philox4x32 with 10 rounds: all bits clear, all bits set.
    assert philox_by_the_book((0, 0), (0, 0, 0, 0), 10) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 2**32 - 1
    known = (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox_by_the_book((ones, ones), (ones, ones, ones, ones), 10) == known
    monkeypatch.setattr(rounding_module, "PHILOX_ROUNDS", 10)
    filled = torch.tensor(ones)
    assert tuple(int(x) for x in philox(torch.tensor(-1), (filled, filled, filled, filled))) == known
    monkeypatch.undo()
    counter = tuple(torch.tensor(x) for x in (3, 7, 11, 2**31 + 5))
    expected = philox_by_the_book((5, 9), tuple(int(x) for x in counter), rounding_module.PHILOX_ROUNDS)
    assert tuple(int(x) for x in philox(torch.tensor(9 * 2**32 + 5), counter)) == expected


def test_what_bfloat16_holds_stays() -> None:
    """All 65,536 patterns; a NaN stays a NaN."""
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).view(256, 256)
    rounded = round_rows(patterns.float(), torch.arange(256), make_rounding(1), 0)
    assert torch.equal(rounded.isnan(), patterns.isnan())
    same = rounded.view(torch.int16) == patterns.view(torch.int16)
    assert (same | patterns.isnan()).all()
    strange = torch.tensor([[0x7FFFFFFF, -1, 0x7F800001, -(2**23) + 1]], dtype=torch.int32).view(torch.float32)
    assert strange.isnan().all() and round_rows(strange, torch.zeros(1).long(), make_rounding(1), 0).isnan().all()


def test_a_value_goes_to_a_neighbour_and_is_right_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 64, generator=generator)
    draws = torch.stack([round_rows(value, torch.tensor([5]), make_rounding(3), write) for write in range(4000)])
    draws = draws.squeeze(1).double()
    below = (value.view(torch.int32) & ~0xFFFF).view(torch.float32).double()
    above = ((value.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32).double()
    assert ((draws == below) | (draws == above)).all()
    # Standard error of a mean of 4,000 draws: at most half a step / sqrt(4000).
    step = (above - below).abs().squeeze()
    error = (draws.mean(0) - value.double().squeeze()).abs() / step
    assert error.max() < 4.5 * 0.5 / 4000**0.5


def test_small_changes_survive_that_rounding_to_the_nearest_would_lose() -> None:
    """A thousand changes of 1/100 of a step: the nearest keeps none of them, the stochastic all, on average."""
    start, change = 1.0, 2.0**-7 / 100
    nearest = torch.full((64, 64), start, dtype=torch.bfloat16)
    stochastic, rounding = nearest.clone(), make_rounding(11)
    slots = torch.arange(64)
    for number in range(1000):
        nearest = (nearest.float() + change).bfloat16()
        stochastic = round_rows(stochastic.float() + change, slots, rounding, number)
    assert (nearest == start).all()
    moved = (stochastic.double().mean() - start) / (1000 * change)
    assert moved.item() == pytest.approx(1, abs=0.02)


def test_bits_depend_on_seed_write_slot_and_column_and_on_nothing_else() -> None:
    values = torch.rand(40, 32, generator=torch.Generator().manual_seed(1))
    slots = torch.arange(40) * 1000
    expected = round_rows(values, slots, make_rounding(7), 2)
    # Reproducible, whatever else is rounded at the same time, and whichever process holds which columns.
    chosen = torch.tensor([30, 2, 17])
    assert torch.equal(round_rows(values[chosen], slots[chosen], make_rounding(7), 2), expected[chosen])
    for first, stop in ((0, 16), (16, 32), (13, 26)):
        part = round_rows(values[:, first:stop], slots, make_rounding(7, first), 2)
        assert torch.equal(part, expected[:, first:stop])
    for seed, write, moved in ((8, 2, 0), (7 + 2**40, 2, 0), (7, 3, 0), (7, 2, 1)):
        other = round_rows(values, slots + moved, make_rounding(seed), write)
        assert 0.3 < (other != expected).double().mean() < 0.7
    # The number of the write counts on from the writes before the call.
    before = make_rounding(7)
    before[1] = 2
    assert torch.equal(round_rows(values, slots, before, 0), expected)
