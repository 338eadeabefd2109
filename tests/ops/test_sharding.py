"""A memory spread over processes is the whole one: the same slots bit for bit, the same tables and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_fwpkm.ops import FastWeightState, MemoryOptions
from megatron_fwpkm.ops.fast_weight_memory import flush_pending, flush_pending_
from megatron_fwpkm.ops.fast_weight_memory.memory_call import Call
from megatron_fwpkm.ops.fast_weight_memory.touched_rows import run_chains
from tests.ops.cases import Case, distance, gradients, make_case
from tests.ops.shards import ThreadShards, part_of, run_part, run_ranks
from tests.quick_cases import examples

pytestmark = pytest.mark.layouts

IMPLEMENTATIONS = ["reference", "sparse"]


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """A number of processes, and shapes and options of one call that it divides."""
    size = draw(st.sampled_from([2, 3, 4]))
    boundary = draw(st.sampled_from(["drop", "carry"]))
    num_subkeys = size * draw(st.integers(1, 3))
    lookahead = draw(st.integers(0, 2))
    return {
        "size": size,
        "seed": draw(st.integers(0, 10**6)),
        "batch": draw(st.integers(1, 2)),
        "tokens": draw(st.integers(1, 20)),
        "heads": draw(st.integers(1, 2)),
        "num_subkeys": num_subkeys,
        "topk": draw(st.integers(1, num_subkeys)),
        "key_dim": 2 * draw(st.integers(1, 3)),
        "value_dim": size * draw(st.integers(1, 2)),
        "gated": draw(st.booleans()),
        "masked": draw(st.booleans()),
        "num_pending": draw(st.integers(0, 9)) if boundary == "carry" else 0,
        "chunk_size": draw(st.integers(lookahead + 3, 9)),
        "lookahead": lookahead,
        "boundary": boundary,
        "score": draw(st.sampled_from(["idw", "dot_product"])),
        # Larger steps of few keys, many times, blow up what two ways of rounding differ by.
        "inner_lr": draw(st.sampled_from([0.0, 0.1])),
        "addressing_weight": draw(st.sampled_from([0.0, 1.0])),
    }


def part_gradients(case: Case, shards: ThreadShards) -> tuple[Any, dict[str, Tensor]]:
    """As `cases.gradients` for one rank, gradients of its rows and columns of the tables among them."""
    part = part_of(case, shards).requires_grad()
    tokens = part.queries, part.targets, part.gates, part.mask
    call = Call.of_tokens(*tokens, part.state, MemoryOptions(**part.options), shards.size)
    result = run_chains(call, False, shards)
    generator = torch.Generator().manual_seed(99)
    shape = (*result.retrieved.shape[:-1], case.targets.shape[-1])
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).chunk(shards.size, -1)[shards.rank]
    slot_weight = torch.randn(result.slot_weights.shape, generator=generator, dtype=torch.float64)
    loss = (result.retrieved * weight).sum() + (result.slot_weights * slot_weight).sum()
    leaves = part.leaves()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    filled = (torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves.values(), found, strict=True))
    return result, dict(zip(leaves, filled, strict=True))


@examples(25, 60)
@given(configurations())
def test_shards_equal_the_whole_memory(configuration: dict[str, Any]) -> None:
    size = configuration.pop("size")
    case = make_case(**configuration)
    expected, whole = gradients(case, implementation="reference")
    alone = case.run(implementation="sparse")
    ranks = run_ranks(size, lambda shards: part_gradients(case, shards))
    for result, found in ranks:
        assert torch.equal(result.slot_indices, expected.slot_indices)
        for name in ("slot_weights", "addressing_loss"):
            assert torch.equal(getattr(result, name), getattr(alone, name)), name
        for name in ("slot_weights", "memorization_loss", "addressing_loss"):
            assert distance(getattr(result, name), getattr(expected, name)) <= 1e-12, name
        for name in ("queries", "gates"):
            assert name not in found or torch.equal(found[name], ranks[0][1][name]), "the same bits on every rank"
    for name, dimension in (("retrieved", -1), ("sub_keys", 2), ("values", 1)):
        together = torch.cat([getattr(result, name) for result, _ in ranks], dimension)
        table = expected.retrieved if name == "retrieved" else getattr(expected.state, name)
        assert distance(together, table) <= 1e-12, name
        assert name != "sub_keys" or torch.equal(together, alone.state.sub_keys)
    scale = max(1.0, *(gradient.abs().max().item() for gradient in whole.values()))
    cut = {"targets": -1, "sub_keys": 2, "values": 1}
    for name, gradient in whole.items():
        parts = [found[name] for _, found in ranks]
        together = torch.cat(parts, cut[name]) if name in cut else parts[0]
        assert (together - gradient).abs().max().item() <= 1e-12 * scale, name


def tables(ranks: list[Case]) -> FastWeightState:
    """Put the ranks' tables together."""
    sub_keys = torch.cat([rank.state.sub_keys for rank in ranks], 2)
    return FastWeightState(sub_keys, torch.cat([rank.state.values for rank in ranks], 1))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("score", ["idw", "dot_product"])
@pytest.mark.parametrize("levels", [None, 1])
def test_float32_choices_are_those_of_one_process_bit_for_bit(size: int, score: str, levels: int | None) -> None:
    """With few levels, scores tie inside a rank and across ranks; each keeps fewer than topk of its own rows."""
    case = make_case(1, tokens=60, num_subkeys=16, topk=6, key_dim=4, dtype=torch.float32, score=score)
    if levels is not None:
        for tensor in (case.queries, case.state.sub_keys):
            tensor.mul_(levels).round_().clamp_(-levels, levels)
        case.options["addressing_weight"] = 0.0
    expected = case.run()

    def run(shards: ThreadShards) -> tuple[Case, Any]:
        part = part_of(case, shards)
        return part, run_part(part, shards)

    ranks = run_ranks(size, run)
    for _, output in ranks:
        for name in ("slot_indices", "slot_weights", "addressing_loss"):
            assert torch.equal(getattr(output, name), getattr(expected, name)), name
    found = tables([part for part, _ in ranks])
    assert torch.equal(found.sub_keys, expected.state.sub_keys)
    assert distance(found.values, expected.state.values) <= 1e-5
    assert torch.equal(found.sub_keys, case.state.sub_keys) == (levels is not None), "keys move but for ties"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_in_place_call_flush_and_undo(implementation: str) -> None:
    case = make_case(2, num_subkeys=6, value_dim=6, masked=True, boundary="carry", implementation=implementation)
    options = {name: value for name, value in case.options.items() if name != "boundary"}
    first = case.run()

    def run(shards: ThreadShards) -> tuple[Any, ...]:
        part = part_of(case, shards)
        before = part.state
        inputs = [leaf.requires_grad_() for leaf in (part.queries, part.gates)]
        output = run_part(part, shards)
        weight = torch.arange(6.0, dtype=torch.float64).chunk(shards.size)[shards.rank]
        found = torch.autograd.grad((output.retrieved * weight).sum(), inputs)
        written = FastWeightState(before.sub_keys.clone(), before.values.clone())
        flushed = flush_pending_(output.state, sharding=shards, **options)
        after = FastWeightState(before.sub_keys.clone(), before.values.clone())
        flushed.undo_log.undo_(before)
        assert torch.equal(before.sub_keys, written.sub_keys) and torch.equal(before.values, written.values)
        output.undo_log.undo_(before)
        initial = part_of(case, shards).state
        assert torch.equal(before.sub_keys, initial.sub_keys) and torch.equal(before.values, initial.values)
        return Case(part.queries, part.targets, None, None, after, {}), output, found

    ranks = run_ranks(2, run)
    whole = case.requires_grad()
    output = whole.run()
    weight = torch.arange(6.0, dtype=torch.float64)
    expected = torch.autograd.grad((output.retrieved * weight).sum(), [whole.queries, whole.gates])
    assert distance(torch.cat([rank[1].retrieved for rank in ranks], -1), first.retrieved) <= 1e-12
    for _, _, found in ranks:
        for mine, theirs in zip(found, expected, strict=True):
            assert distance(mine, theirs) <= 1e-12
    flushed = flush_pending(first.state, **options)
    found_tables = tables([rank[0] for rank in ranks])
    assert distance(found_tables.sub_keys, flushed.state.sub_keys) <= 1e-12
    assert distance(found_tables.values, flushed.state.values) <= 1e-12


CHUNKS = 3


@pytest.mark.parametrize(
    ("options", "gathers", "sums"),
    [
        # Forward: proposals per chunk, errors once. Backward: pulls of all chunks but the last; slot weights, gates and
        # queries once.
        ({}, CHUNKS, 1 + CHUNKS - 1 + 3),
        ({"addressing_weight": 0.0}, 1, 1 + 3),
        ({"inner_lr": 0.0}, 1, 1 + 3),
        # All rows once per call and dense autograd on them; slot weights per chunk.
        ({"implementation": "reference"}, 1, 1 + CHUNKS + 1),
    ],
)
def test_what_a_call_asks_for(options: dict[str, Any], gathers: int, sums: int) -> None:
    case = make_case(tokens=8 * CHUNKS, num_subkeys=6, **options)

    def run(shards: ThreadShards) -> Any:
        part = part_of(case, shards)
        for leaf in (part.queries, part.gates):
            leaf.requires_grad_()
        run_part(part, shards).retrieved.sum().backward()
        return shards.sent["gather"], shards.sent["sum"]

    assert run_ranks(2, run) == [(gathers, sums)] * 2


def test_plain_needs_whole_tables() -> None:
    case = make_case(num_subkeys=6, implementation="plain")
    with pytest.raises(ValueError, match="implementation='plain' requires whole tables, but these are sharded"):
        run_ranks(2, lambda shards: run_part(part_of(case, shards), shards))


def test_tables_of_another_number_of_processes_are_refused() -> None:
    case = make_case(num_subkeys=8)

    def run(shards: ThreadShards) -> None:
        part = part_of(case, shards)
        part.state = FastWeightState(case.state.sub_keys, part.state.values)
        run_part(part, shards)

    with pytest.raises(ValueError, match=r"on each of 2 processes have 16 sub-keys, so values must have 256 rows"):
        run_ranks(2, run)
