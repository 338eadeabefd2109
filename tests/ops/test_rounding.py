"""Stochastic rounding to bfloat16: the numbers of Philox, exactness, statistics, and tables in bfloat16 as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_fwpkm.ops import FastWeightState, fast_weight_memory, fast_weight_memory_
from megatron_fwpkm.ops.fast_weight_memory import rounding as rounding_module
from megatron_fwpkm.ops.fast_weight_memory.rounding import make_rounding, philox, round_rows
from megatron_fwpkm.ops.product_key.reference import read_slots
from tests.ops.cases import Case, distance, make_case


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


def half_case(seed: int = 0, **changes: Any) -> Case:
    """A case with a bfloat16 table."""
    case = make_case(seed, **{"value_dim": 8, "dtype": torch.float32, **changes})
    state = replace(case.state, values=case.state.values.bfloat16(), rounding=make_rounding(5))
    return replace(case, state=state)


IMPLEMENTATIONS = ["sparse", "triton"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_call_is_that_of_a_float32_table_up_to_one_step(implementation: str) -> None:
    case = half_case(tokens=8, implementation=implementation).requires_grad()
    wide = replace(case, state=FastWeightState(case.state.sub_keys.detach(), case.state.values.detach().float()))
    output, expected = case.run(), wide.run(implementation="sparse")
    assert output.state.values.dtype == torch.bfloat16 and output.retrieved.dtype == torch.float32
    assert torch.equal(output.slot_indices, expected.slot_indices)
    assert distance(output.retrieved, expected.retrieved) <= 1e-6
    difference = (output.state.values.float() - expected.state.values).abs()
    assert (difference <= 2.0**-7 * expected.state.values.abs() * 1.0001).all()
    output.retrieved.sum().backward()
    assert case.state.values.grad is not None and case.state.values.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_through_writes_are_those_of_the_values_that_were_read(implementation: str) -> None:
    """Against dense autograd over the rounded tables themselves, piece by piece: rounding passes gradients on."""
    case = half_case(tokens=16, chunk_size=8, addressing_weight=0.0)
    case = case.requires_grad()
    retrieved = case.run(implementation=implementation).retrieved
    first = slice(0, 8)
    weigh = torch.randn(retrieved.shape, generator=torch.Generator().manual_seed(1))
    actual = torch.autograd.grad((retrieved * weigh).sum(), [case.queries, case.targets, case.gates])
    # Rounding as a constant added to the float32 result of the first write.
    keys, values = case.state.sub_keys.detach(), case.state.values.detach().float()
    assert case.gates is not None
    options = {**case.options, "implementation": "reference"}
    start = fast_weight_memory(
        case.queries[:, first], case.targets[:, first], case.gates[:, first], FastWeightState(keys, values), **options
    )
    rounded = replace(case, queries=case.queries[:, first], targets=case.targets[:, first], gates=case.gates[:, first])
    table = rounded.run(implementation=implementation).state.values.float()
    shift = (table - start.state.values).detach()

    def chain() -> Any:
        whole, _ = two_chunks(case, keys, values, shift, options)
        return torch.autograd.grad((whole * weigh).sum(), [case.queries, case.targets, case.gates])

    for one, other in zip(actual, chain(), strict=True):
        assert distance(one, other) <= 1e-5


def two_chunks(case: Case, keys: Any, values: Any, shift: Any, options: Any) -> tuple[Any, Any]:
    """Reads of two chunks in dense autograd, with `shift` added to the table between them."""
    assert case.gates is not None
    retrieved, table = [], values
    for chunk in (slice(0, 8), slice(8, 16)):
        queries, targets, gates = case.queries[:, chunk], case.targets[:, chunk], case.gates[:, chunk]
        slots, weights, _ = read_slots(queries, keys, options["topk"], "idw")
        read = (weights.flatten(2).unsqueeze(-1) * table[slots.flatten(2)]).sum(2)
        retrieved.append(read)
        error = read[:, :-1] - targets[:, 1:]
        changes = (weights.flatten(2)[:, :-1] * gates[:, :-1, None]).unsqueeze(-1) * error.unsqueeze(2)
        counts = torch.bincount(slots.flatten(), minlength=table.shape[0]).clamp(min=1)
        pairs = weights.flatten(2).shape[2]
        change = torch.zeros_like(table).index_add(0, slots.flatten(2)[:, :-1].flatten(), changes.flatten(0, 2))
        table = table - (pairs * 8 / 7 / counts).unsqueeze(1) * change + shift
    return torch.cat(retrieved, 1), table


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_however_a_text_is_cut_the_bits_are_the_same(implementation: str) -> None:
    """The rounding counts writes, not calls."""
    tokens = 8 if implementation == "triton" else 40
    case = half_case(3, batch=1, heads=1, tokens=tokens, boundary="carry", chunk_size=3, implementation=implementation)
    expected = case.run().state
    state = case.state
    assert case.gates is not None
    for part in (slice(0, 5), slice(5, 6), slice(6, None)):
        output = fast_weight_memory(
            case.queries[:, part], case.targets[:, part], case.gates[:, part], state, **case.options
        )
        state = output.state
    assert expected.rounding is not None and state.rounding is not None
    assert torch.equal(state.values, expected.values) and torch.equal(state.rounding, expected.rounding)
    assert state.rounding.tolist() == [5, (tokens - 1) // 3, 0]


def test_in_place_goes_on_counting_and_is_undone() -> None:
    case = half_case(tokens=16)
    state = replace(case.state, values=case.state.values.clone(), sub_keys=case.state.sub_keys.clone())
    output = fast_weight_memory_(case.queries, case.targets, case.gates, state, **case.options)
    assert output.state.rounding is state.rounding and state.rounding is not None and state.rounding[1] == 2
    again = fast_weight_memory_(case.queries, case.targets, case.gates, output.state, **case.options)
    assert state.rounding[1] == 4
    frozen = fast_weight_memory_(case.queries, case.targets, case.gates, state, **{**case.options, "inner_lr": 0.0})
    assert frozen.state.rounding is state.rounding and state.rounding[1] == 4
    for log in (again.undo_log, output.undo_log):
        assert log is not None
        log.undo_(state)
    assert torch.equal(state.values, case.state.values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounding": None}, r"requires state.rounding, int64 \[3\] on cpu, got None: start with"),
        ({"rounding": torch.zeros(2)}, r"got torch.float32 \[2\] on cpu"),
    ],
)
def test_a_table_without_rounding_is_refused(change: Any, message: str) -> None:
    case = half_case()
    with pytest.raises(ValueError, match=message):
        replace(case, state=replace(case.state, **change)).run()


def test_the_reference_takes_no_bfloat16() -> None:
    with pytest.raises(ValueError, match="does not support bfloat16 values: use 'sparse'"):
        half_case().run(implementation="reference")
