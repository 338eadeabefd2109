"""Product-key selection: exactly the best pairs, lowest index first among equals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_fwpkm.ops.fast_weight_memory import plain
from megatron_fwpkm.ops.product_key import selection
from megatron_fwpkm.ops.product_key.reference import read_slots
from megatron_fwpkm.ops.product_key.selection import KeptSubKeys, select_slots, select_sub_keys
from tests.ops.cases import make_case
from tests.quick_cases import examples


def slots_of(queries: Tensor, sub_keys: Tensor, topk: int, score: str) -> Tensor:
    """Slots [B, T, heads, topk] by the fast selection."""
    batch, tokens, heads, _ = queries.shape
    halves = queries.unflatten(-1, (2, -1)).permute(2, 3, 0, 1, 4).flatten(2, 3).flatten(0, 1)
    kept = select_sub_keys(halves, sub_keys.flatten(0, 1), topk, score)
    return select_slots(kept, sub_keys.shape[2], score).slots.unflatten(0, (batch, tokens))


@examples(60, 150)
@given(
    seed=st.integers(0, 10**6),
    num_subkeys=st.integers(1, 12),
    data=st.data(),
    levels=st.integers(1, 3),
    score=st.sampled_from(["idw", "dot_product"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_many_equal_scores(
    seed: int, num_subkeys: int, data: st.DataObject, levels: int, score: str, dtype: torch.dtype
) -> None:
    """Small integers as coordinates: most scores are equal, and all arithmetic up to the logarithm is exact."""
    topk = data.draw(st.integers(1, num_subkeys))
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-levels, levels + 1, (2, 3, 2, 4), generator=generator).to(dtype)
    sub_keys = torch.randint(-levels, levels + 1, (2, 2, num_subkeys, 2), generator=generator).to(dtype)
    expected, _, _ = read_slots(queries, sub_keys, topk, score)
    assert torch.equal(slots_of(queries, sub_keys, topk, score), expected)


@pytest.mark.parametrize("score", ["idw", "dot_product"])
def test_identical_sub_keys_go_to_the_lowest_slots(score: str) -> None:
    """All 64 sub-keys equal, with coordinates no matrix product rounds alike in every column."""
    case = make_case(1, num_subkeys=64, key_dim=34, topk=3, dtype=torch.float32)
    sub_keys = case.state.sub_keys[:, :, :1].expand(-1, -1, 64, -1).contiguous()
    slots = slots_of(case.queries, sub_keys, 3, score)
    assert (slots == torch.tensor([0, 1, 2])).all()


@pytest.mark.parametrize("score", ["idw", "dot_product"])
def test_selection_does_not_depend_on_the_batch(score: str) -> None:
    """Sub-keys in near-equal pairs, which a matrix product of another shape may order otherwise."""
    case = make_case(2, batch=1, tokens=200, heads=1, num_subkeys=96, key_dim=128, topk=8, dtype=torch.float32)
    sub_keys = case.state.sub_keys
    sub_keys[:, :, 48:] = sub_keys[:, :, :48] * (1 + 1e-7)
    together = slots_of(case.queries, sub_keys, 8, score)
    alone = [slots_of(case.queries[:, t : t + 1], sub_keys, 8, score) for t in range(200)]
    assert torch.equal(together, torch.cat(alone, 1))


def test_blocks_of_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(3, tokens=50, num_subkeys=9, topk=4)
    expected = slots_of(case.queries, case.state.sub_keys, 4, "idw")
    monkeypatch.setattr(selection, "_BLOCK_ELEMENTS", 9 * 4 * 7)
    assert torch.equal(slots_of(case.queries, case.state.sub_keys, 4, "idw"), expected)


@pytest.mark.parametrize("levels", [1, 1000])
def test_directions_are_those_of_the_kept_sub_keys(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ties, which are ranked a second time, and without; in one block of tokens and in several."""
    generator = torch.Generator().manual_seed(levels)
    queries, sub_keys = (torch.randint(-levels, levels + 1, (4, m, 3), generator=generator).float() for m in (20, 48))
    for block in (selection._BLOCK_ELEMENTS, 4 * 48 * 7):
        monkeypatch.setattr(selection, "_BLOCK_ELEMENTS", block)
        kept = select_sub_keys(queries, sub_keys, 5, "idw", with_directions=True)
        expected = queries.unsqueeze(2) - selection.gather_sub_keys(sub_keys, kept.indices)
        assert kept.directions is not None and torch.equal(kept.directions, expected)
        assert torch.equal(kept.costs, expected.square().sum(-1))
        without = select_sub_keys(queries, sub_keys, 5, "idw")
        assert without.directions is None and torch.equal(without.indices, kept.indices)


@pytest.mark.parametrize("score", ["idw", "dot_product"])
def test_proposals_by_another_library_change_nothing(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large products are oneDNN's, which rounds otherwise; what is selected depends on exact costs alone."""
    case = make_case(6, batch=1, tokens=70, heads=1, num_subkeys=48, key_dim=34, topk=5, dtype=torch.float32)
    halves = case.queries.unflatten(-1, (2, -1)).permute(2, 3, 0, 1, 4).flatten(2, 3).flatten(0, 1)
    sub_keys = case.state.sub_keys.flatten(0, 1)
    sub_keys[:, 24:] = sub_keys[:, :24] * (1 + 1e-7)
    expected = select_sub_keys(halves, sub_keys, 5, score)
    added = torch.arange(96.0).view(2, 48)
    products = torch.baddbmm(added.unsqueeze(1), halves, sub_keys.transpose(1, 2))
    monkeypatch.setattr(selection, "_LARGE_PRODUCT", 0)
    assert torch.allclose(selection._products(halves, sub_keys, added), products, rtol=1e-5, atol=1e-5)
    kept = select_sub_keys(halves, sub_keys, 5, score)
    assert torch.equal(kept.indices, expected.indices) and torch.equal(kept.costs, expected.costs)


@pytest.mark.parametrize("variable", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_onednn_is_not_asked_where_the_environment_allows_it_less(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "BF16")
    assert not selection._has_onednn.__wrapped__()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("score", ["idw", "dot_product"])
def test_tokens_without_a_finite_score_take_sub_keys_that_exist(number: float, score: str) -> None:
    """40 sub-keys of which one is kept: fewer than torch's heap is used for, so something is added to them."""
    case = make_case(5, batch=1, tokens=6, heads=1, num_subkeys=40, key_dim=8, topk=1, dtype=torch.float32)
    queries = case.queries.flatten(0, 2).view(1, 6, 8)[..., :4].repeat(2, 1, 1)
    sub_keys = case.state.sub_keys.flatten(0, 1)
    expected = select_sub_keys(queries, sub_keys, 1, score).indices
    queries[:, 2] = number
    kept = select_sub_keys(queries, sub_keys, 1, score, with_directions=score == "idw")
    assert bool((kept.indices >= 0).all()) and bool((kept.indices < 40).all())
    others = [0, 1, 3, 4, 5]
    assert torch.equal(kept.indices[:, others], expected[:, others])


@pytest.mark.parametrize("topk", [1, 2, 7, 8, 32])
def test_candidates_always_contain_the_best_pairs(topk: int) -> None:
    """Against all topk * topk pairs, with halves of very different spread."""
    generator = torch.Generator().manual_seed(topk)
    for spread in (0.01, 1.0, 100.0):
        scores = torch.randn(2, 64, topk, generator=generator, dtype=torch.float64)
        scores[1] *= spread
        scores = scores.sort(-1, descending=True).values
        indices = torch.arange(topk).expand(2, 64, topk)
        chosen = select_slots(KeptSubKeys(indices, -scores), topk, "dot_product")
        every = (scores[0, :, :, None] + scores[1, :, None, :]).flatten(-2).topk(topk)
        assert torch.equal(chosen.scores[:, 0], every.values) and torch.equal(chosen.slots[:, 0], every.indices)


def test_autocast_does_not_reach_the_scores() -> None:
    """bf16 scores are off by 0.16 near a key."""
    case = make_case(4, num_subkeys=16, key_dim=32, dtype=torch.float32).requires_grad()
    expected = case.run()
    expected.retrieved.sum().backward()
    for implementation in ("reference", "sparse"):
        other = case.requires_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = other.run(implementation=implementation)
        (gradient,) = torch.autograd.grad(output.retrieved.sum(), other.queries)
        assert torch.equal(output.slot_indices, expected.slot_indices)
        assert torch.allclose(output.retrieved, expected.retrieved, rtol=1e-5, atol=1e-6)
        assert case.queries.grad is not None
        assert torch.allclose(gradient, case.queries.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_subkeys", "topk"), [(7, 7), (64, 1), (100, 8), (511, 8), (1024, 32)])
def test_packed_proposals_are_the_smallest(num_subkeys: int, topk: int) -> None:
    """Of both signs and of every size that a float32 has, infinity too; those of a token differ from each other."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (64, num_subkeys), generator=generator).to(torch.int32)
    numbers = bits.view(torch.float32)
    numbers = torch.where(numbers.isnan(), torch.inf, numbers)
    numbers[:, 0], numbers[1::2, -1] = -torch.inf, 0.0
    best, indices = selection._partition(numbers, topk)
    expected = numbers.sort(dim=-1, stable=True)
    assert torch.equal(best, expected.values[:, :topk])
    assert torch.equal(numbers.gather(-1, indices), best)
    assert (indices.sort(dim=-1).values.diff(dim=-1) > 0).all(), "an index is named twice"


def test_both_ways_to_the_smallest_keep_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed, and by torch where processor or numpy is not made for that; NaN does no harm to other tokens."""
    generator = torch.Generator().manual_seed(2)
    queries, sub_keys = (torch.randn(2, length, 16, generator=generator) for length in (200, 100))
    queries[:, 3] = torch.nan
    kept = []
    for fast in (False, True):
        monkeypatch.setattr(selection, "_partitions_fast", lambda fast=fast: fast)
        kept.append(select_sub_keys(queries, sub_keys, 8, "idw"))
    others = torch.arange(200) != 3
    for one, other in zip(kept[0][:2], kept[1][:2], strict=True):
        assert torch.equal(one[:, others], other[:, others])
    assert (kept[1].indices < 100).all() and kept[1].costs[:, 3].isnan().all()


@pytest.mark.parametrize(("num_subkeys", "topk"), [(64, 3), (256, 8), (250, 8), (32, 8), (2048, 1)])
def test_plain_finds_the_largest_by_groups(num_subkeys: int, topk: int) -> None:
    products = torch.randn(2, 40, num_subkeys, generator=torch.Generator().manual_seed(num_subkeys))
    products[:, ::2] = products[:, ::2].round()  # many equal ones, also in different groups
    found = plain._largest(products, topk)
    assert (found.sort(-1).values.diff(dim=-1) > 0).all(), "no index twice"
    expected = products.sort(-1, descending=True).values[..., :topk]
    torch.testing.assert_close(products.gather(-1, found).sort(-1, descending=True).values, expected, rtol=0, atol=0)
