"""Ranks that share a memory: their parts, choices that are those of one process, and what a check of them finds."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from benchmarks.counting import counting
from megatron_fwpkm.layers import table_sharding
from megatron_fwpkm.layers.table_sharding import ContextSharding, MemorySharding
from megatron_fwpkm.ops import FastWeightState, fast_weight_memory, fast_weight_memory_
from megatron_fwpkm.ops.initialization import initial_sub_keys
from tests.layers.megatron import initialize, tiny
from tests.ops.cases import Case, distance, make_case
from tests.spawned_ranks import run_distributed

pytestmark = pytest.mark.layouts

_LAYOUTS = {2: [(2, 1), (1, 2)], 4: [(4, 1), (2, 2), (1, 4)]}
"""Tensor- and context-parallel sizes by number of processes; those of four are slow."""
# 16 sub-keys: each of four ranks has fewer rows than topk.
_CASES: dict[str, dict[str, Any]] = {
    "moving keys": {},
    "dot product": {"score": "dot_product", "addressing_weight": 0.2},
    "ties": {"addressing_weight": 0.0},
}


def _case(name: str) -> Case:
    case = make_case(3, tokens=40, num_subkeys=16, topk=6, key_dim=4, value_dim=8, dtype=torch.float32, **_CASES[name])
    if name == "ties":
        for tensor in (case.queries, case.state.sub_keys):
            tensor.round_().clamp_(-1, 1)
    return case


def _start(tensor_parallel: int, context_parallel: int) -> None:
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    initialize(tensor_parallel, context_parallel)


def _read_and_write(rank: int, world_size: int) -> list[dict[str, Any]]:
    """Every case in every layout: this rank's part of the tables, and what the call returned; of two, then hashes."""
    from megatron.core import parallel_state

    found = []
    for layout in _LAYOUTS[world_size]:
        _start(*layout)
        context = ContextSharding(parallel_state.get_context_parallel_group())
        sharding = MemorySharding(parallel_state.get_tensor_and_context_parallel_group(), context, 16, 8)
        results: dict[str, Any] = {"part": sharding.rank}
        for name in _CASES:
            case = _case(name)
            sub_keys = case.state.sub_keys[:, :, sharding.rows].clone()
            state = FastWeightState(sub_keys, case.state.values[:, sharding.columns].clone())
            targets = case.targets[..., sharding.columns]
            output = fast_weight_memory_(case.queries, targets, case.gates, state, sharding=sharding, **case.options)
            results[name] = (output.slot_indices, output.slot_weights, state.sub_keys, state.values)
        found.append(results)
    return [*found, _hashes_of_two_ranks(rank)] if world_size == 2 else found


@cache
def _by_layout(processes: int) -> dict[Any, list[dict[str, Any]]]:
    """What the ranks of every layout returned; of two processes the hashes, too, as `hashes`."""
    names = [*_LAYOUTS[processes], *(["hashes"] if processes == 2 else [])]
    by_rank = run_distributed(_read_and_write, processes, timeout=100)
    return dict(zip(names, (list(ranks) for ranks in zip(*by_rank, strict=True)), strict=True))


@pytest.mark.parametrize(
    "layout", [*_LAYOUTS[2], *(pytest.param(layout, marks=pytest.mark.slow) for layout in _LAYOUTS[4])]
)
@pytest.mark.parametrize("name", _CASES)
def test_choices_are_those_of_one_process_bit_for_bit(layout: tuple[int, int], name: str) -> None:
    case = _case(name)
    expected = fast_weight_memory(case.queries, case.targets, case.gates, case.state, **case.options)
    ranks = _by_layout(layout[0] * layout[1])[layout]
    tables: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for rank in ranks:
        indices, weights, *tables[rank["part"]] = rank[name]
        assert torch.equal(indices, expected.slot_indices) and torch.equal(weights, expected.slot_weights)
    assert sorted(tables) == list(range(layout[0] * layout[1]))
    parts = [tables[part] for part in sorted(tables)]
    sub_keys, values = torch.cat([part[0] for part in parts], 2), torch.cat([part[1] for part in parts], 1)
    assert torch.equal(sub_keys, expected.state.sub_keys) and distance(values, expected.state.values) <= 1e-5
    assert torch.equal(sub_keys, case.state.sub_keys) == (name == "ties")


def _hashes_of_two_ranks(rank: int) -> dict[str, int]:
    """Hashes of a memory on two tensor-parallel ranks, one of which comes to harm; then a part's resets and loads."""
    from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
    from megatron_fwpkm.models.transformer_config import transformer_config

    hidden = torch.randn(48, 2, 32, generator=torch.Generator().manual_seed(1))
    found = {}
    for harm in ("none", "queries", "gates", "row"):
        _start(2, 1)
        memory = FastWeightMemoryLayer(transformer_config(tiny()), 1)
        if rank == 1 and harm != "none":
            weight = {"queries": memory.query_proj.weight, "gates": memory.gate_proj.bias, "row": memory.sub_keys}[harm]
            weight.data.view(-1)[0] += 1e-3
        with torch.no_grad():
            memory(hidden)
        found[harm] = int(memory.consistency_hash())
    for reset in ("never", "step"):
        _part_is_reset_preserved_and_loaded(
            FastWeightMemoryLayer(transformer_config(tiny(reset=reset)), 1), hidden, rank
        )
    return found


@torch.no_grad()
def _part_is_reset_preserved_and_loaded(memory: Any, hidden: torch.Tensor, rank: int) -> None:
    def parts() -> list[torch.Tensor]:
        return [memory.sub_keys.clone(), memory.values.clone()]

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(torch.equal(*pair) for pair in zip(one, other, strict=True))

    initial = parts()
    assert torch.equal(initial[0], initial_sub_keys(memory.config.fwpkm, memory.config.init_seed, 1).chunk(2, 2)[rank])
    memory(hidden)
    written = parts()
    assert written[0].shape == (1, 2, 4, 8) and not torch.equal(written[0], initial[0])
    with memory.preserve_fast_weights():
        memory(hidden)
        memory.reset()
        assert same(parts(), initial)
    assert same(parts(), written)
    memory.reset()
    assert same(parts(), initial)
    memory.load_fast_weights(FastWeightState(*written))
    assert same(parts(), written)
    memory.reset()
    assert same(parts(), initial)


def test_the_hash_finds_ranks_that_differ_and_not_a_row_that_exists_once() -> None:
    one, other = _by_layout(2)["hashes"]
    assert {harm for harm in one if one[harm] != other[harm]} == {"queries", "gates"}
    assert one["row"] != one["none"], "both ranks read the harmed row alike"


class _Group:
    """As many ranks as it is told."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return 0


def _alone(monkeypatch: pytest.MonkeyPatch, everyone: torch.Tensor) -> ContextSharding:
    """One of two context-parallel ranks, which receives what is given and sends nothing."""
    monkeypatch.setattr(table_sharding, "gather_from_sequence_parallel_region", lambda x, *_: everyone)
    monkeypatch.setattr(table_sharding, "all_to_all", lambda _, x: x)
    return ContextSharding(_Group(2))


def test_pieces_of_ranks_are_put_into_the_order_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = torch.arange(8.0)
    by_rank = torch.tensor([0.0, 1, 6, 7, 2, 3, 4, 5]).requires_grad_()
    context = _alone(monkeypatch, by_rank)
    gathered = context.gather_tokens(text[:4])
    assert torch.equal(gathered, text) and torch.equal(context.own_tokens(text), by_rank[:4])
    (gradient,) = torch.autograd.grad(gathered, by_rank, text)
    assert torch.equal(gradient, by_rank)
    columns = text.view(8, 1, 1)
    sent = context.columns_to_tokens(columns)
    assert torch.equal(context.tokens_to_columns(sent), columns)


def test_ranks_that_share_a_sequence_never_make_the_host_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = torch.empty(8, 2, 4, device="meta").requires_grad_()
    context = _alone(monkeypatch, everyone)
    with counting(triton=False) as found:
        text = context.gather_tokens(everyone[:4]) + context.own_tokens(everyone).sum()
        columns = context.tokens_to_columns(context.columns_to_tokens(everyone))
        torch.autograd.grad(text.sum() + columns.sum(), everyone)
    assert not found.waits


@pytest.mark.parametrize(
    ("num_subkeys", "value_dim", "context", "message"),
    [
        (18, 16, 1, "--fwpkm-value-dim 16 is not divisible by --tensor-model-parallel-size 6: use 12 or 18"),
        (16, 18, 2, "keys 16 .* --tensor-model-parallel-size 3 times --context-parallel-size 2: use 12 or 18"),
        (4, 18, 1, "--fwpkm-num-subkeys 4 is not divisible by --tensor-model-parallel-size 6: use 6"),
    ],
)
def test_ranks_must_divide_both_tables(num_subkeys: int, value_dim: int, context: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemorySharding(_Group(6), ContextSharding(_Group(context)), num_subkeys, value_dim)
