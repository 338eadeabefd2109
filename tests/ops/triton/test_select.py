"""Selection kernels against a stable sort of all exact costs: the best, lowest index first, whatever the proposals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_fwpkm.ops.product_key.selection import (
    KeptSubKeys,
    scores_of,
    select_slots,
)
from megatron_fwpkm.ops.product_key.triton import select as product_key
from tests.ops.cases import distance
from tests.ops.triton.harness import DEVICE, poisoned, shuffled
from tests.ops.triton.keys import TOLERANCE, draw, draw_integers, rank_all
from tests.quick_cases import examples, product_cases

SCORES = ["idw", "dot_product"]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with poisoned():
        yield


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("num_subkeys", "topk", "half_dim"), [(1, 1, 1), (5, 2, 3), (33, 32, 8), (64, 8, 20), (100, 8, 16)]
)
def test_the_best_sub_keys_are_chosen(
    num_subkeys: int, topk: int, half_dim: int, dtype: torch.dtype, score: str
) -> None:
    queries, sub_keys = draw(0, 2, 3, half_dim, dtype=dtype), draw(1, 2, num_subkeys, half_dim, dtype=dtype)
    kept = product_key.select_sub_keys(queries, sub_keys, topk, score)
    expected = rank_all(queries, sub_keys, topk, score)
    assert kept.indices.dtype == torch.int32 and torch.equal(kept.indices.long(), expected.indices)
    assert kept.costs.dtype == dtype and distance(kept.costs, expected.costs) <= TOLERANCE[dtype]


@pytest.mark.parametrize("num_subkeys", [pytest.param(3000, marks=pytest.mark.slow), 4096])
def test_the_longest_lists(num_subkeys: int) -> None:
    queries, sub_keys = draw(2, 2, 2, 8), draw(3, 2, num_subkeys, 8)
    kept = product_key.select_sub_keys(queries, sub_keys, 32, "idw")
    assert torch.equal(kept.indices.long(), rank_all(queries, sub_keys, 32, "idw").indices)


@examples(10, 30)
@given(
    seed=st.integers(0, 10**6),
    num_subkeys=st.integers(1, 12),
    data=st.data(),
    levels=st.integers(0, 3),
    score=st.sampled_from(SCORES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equal_costs_go_to_the_lowest_index(
    seed: int, num_subkeys: int, data: st.DataObject, levels: int, score: str, dtype: torch.dtype
) -> None:
    """Small whole numbers as coordinates: most costs are equal, and their arithmetic is exact."""
    topk = data.draw(st.integers(1, num_subkeys))
    queries = draw_integers(seed, -levels, levels, 2, 2, 2).to(dtype)
    sub_keys = draw_integers(seed + 1, -levels, levels, 2, num_subkeys, 2).to(dtype)
    kept = product_key.select_sub_keys(queries, sub_keys, topk, score)
    expected = rank_all(queries, sub_keys, topk, score)
    assert torch.equal(kept.indices.long(), expected.indices) and torch.equal(kept.costs.double(), expected.costs)


@pytest.mark.parametrize("score", SCORES)
def test_identical_sub_keys_go_to_the_lowest_index(score: str) -> None:
    """All 64 sub-keys equal, with coordinates no matrix product rounds alike in every column."""
    queries = draw(4, 2, 3, 17, dtype=torch.float32)
    sub_keys = draw(5, 2, 1, 17, dtype=torch.float32).expand(-1, 64, -1).contiguous()
    kept = product_key.select_sub_keys(queries, sub_keys, 3, score)
    assert (kept.indices == torch.tensor([0, 1, 2], device=DEVICE)).all()


def test_a_query_on_a_sub_key_costs_nothing() -> None:
    """Far from the origin, where the expanded square has lost all its digits."""
    sub_keys = 1000 + draw(6, 2, 8, 12, dtype=torch.float32)
    kept = product_key.select_sub_keys(sub_keys, sub_keys, 1, "idw")
    assert torch.equal(kept.indices[..., 0].long(), torch.arange(8, device=DEVICE).expand(2, -1))
    assert (kept.costs == 0).all()


def near_pairs() -> tuple[Tensor, Tensor]:
    """Sub-keys in near-equal pairs, which a matrix product of another shape may order otherwise."""
    queries, sub_keys = draw(7, 2, 8, 64, dtype=torch.float32), draw(8, 2, 24, 64, dtype=torch.float32)
    return queries, torch.cat([sub_keys, sub_keys * (1 + 1e-7)], 1)


@pytest.mark.parametrize("score", [pytest.param("idw", marks=pytest.mark.slow), "dot_product"])
def test_a_token_does_not_depend_on_its_batch(score: str) -> None:
    queries, sub_keys = near_pairs()
    together = product_key.select_sub_keys(queries, sub_keys, 7, score)
    alone = [product_key.select_sub_keys(queries[:, t : t + 1], sub_keys, 7, score) for t in range(queries.shape[1])]
    assert torch.equal(together.indices, torch.cat([kept.indices for kept in alone], 1))
    assert torch.equal(together.costs, torch.cat([kept.costs for kept in alone], 1))


@pytest.mark.parametrize("score", SCORES)
def test_rounding_of_the_proposals_changes_nothing(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposals off by four roundings, in an unlucky direction; without the search for doubts the choice differs."""
    queries, sub_keys = near_pairs()
    expected = product_key.select_sub_keys(queries, sub_keys, 7, score)
    propose = product_key.propose

    def propose_worse(queries: Tensor, sub_keys: Tensor) -> Tensor:
        size = queries.norm(dim=-1, keepdim=True) * sub_keys.norm(dim=-1).unsqueeze(1) * sub_keys.shape[2] ** 0.5
        # A cost holds twice the product, or once.
        noise = (
            (2 if score == "idw" else 4)
            * torch.finfo(torch.float32).eps
            * size
            * draw(9, *size.shape, dtype=torch.float32).sign()
        )
        return propose(queries, sub_keys) + noise

    monkeypatch.setattr(product_key, "propose", propose_worse)
    kept = product_key.select_sub_keys(queries, sub_keys, 7, score)
    assert torch.equal(kept.indices, expected.indices) and torch.equal(kept.costs, expected.costs)
    monkeypatch.setattr(product_key, "_ROUNDING", 0)
    coarse = product_key.select_sub_keys(queries, sub_keys, 7, score)
    assert not torch.equal(coarse.indices, expected.indices), "the proposals must be bad enough to matter"


def test_blocks_strides_and_alignment_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, sub_keys = draw(10, 2, 11, 3, dtype=torch.float32), draw(11, 2, 9, 3, dtype=torch.float32)
    expected = product_key.select_sub_keys(queries, sub_keys, 4, "idw")
    time_first = queries.transpose(0, 1).contiguous().transpose(0, 1)
    padded = torch.cat([queries[:, :1], queries], 1)[:, 1:]
    numbers_apart = queries.transpose(1, 2).contiguous().transpose(1, 2)
    monkeypatch.setattr(product_key, "_BLOCK_ELEMENTS", 2 * 9 * 4)
    monkeypatch.setattr(product_key, "_NUMBERS", 32)
    for same in (queries, time_first, padded, numbers_apart):
        kept = product_key.select_sub_keys(same, sub_keys, 4, "idw")
        assert torch.equal(kept.indices, expected.indices) and torch.equal(kept.costs, expected.costs)


def test_part_of_a_list_counts_from_its_first_sub_key() -> None:
    queries, sub_keys = draw(12, 2, 3, 4), draw(13, 2, 10, 4)
    kept = product_key.select_sub_keys(queries, sub_keys[:, 6:], 4, "idw", first_key=6)
    assert torch.equal(kept.indices.long(), rank_all(queries, sub_keys[:, 6:], 4, "idw").indices + 6)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_not_a_number_harms_only_its_token() -> None:
    queries, sub_keys = draw(14, 2, 4, 4, dtype=torch.float32), draw(15, 2, 10, 4, dtype=torch.float32)
    expected = product_key.select_sub_keys(queries, sub_keys, 3, "idw")
    queries[:, 1, 2], queries[:, 2, 1] = float("nan"), float("inf")
    kept = product_key.select_sub_keys(queries, sub_keys, 3, "idw")
    assert ((kept.indices >= 0) & (kept.indices < 10)).all()
    assert not kept.costs[:, 1:3].isfinite().any()
    for token in (0, 3):
        assert torch.equal(kept.indices[:, token], expected.indices[:, token])
    slots = product_key.select_slots(kept, 10, "idw").slots
    assert ((slots >= 0) & (slots < 100)).all()


def random_kept(seed: int, topk: int, spread: float = 1.0) -> KeptSubKeys:
    """Kept sub-keys of 2 heads and 3 tokens; the halves differ in their spread."""
    costs = draw(seed, 4, 3, topk).abs()
    costs[1::2] *= spread
    indices = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(s))[:topk] for s in range(12)])
    return KeptSubKeys(indices.view(4, 3, topk).to(DEVICE, torch.int32), costs.sort(-1).values)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("topk", [1, 2, 7, pytest.param(8, marks=pytest.mark.slow), 32])
def test_the_best_slots_are_chosen(topk: int, score: str) -> None:
    for spread in (0.01, 1.0, 100.0):
        kept = random_kept(topk, topk, spread)
        choice = product_key.select_slots(kept, 40, score)
        scores = scores_of(kept.costs, score).view(2, 2, 3, topk)
        indices = kept.indices.long().view(2, 2, 3, topk)
        pairs = (scores[:, 0, :, :, None] + scores[:, 1, :, None, :]).flatten(-2)
        best, place = pairs.topk(topk)
        first, second = place // topk, place % topk
        slots = indices[:, 0].gather(-1, first) * 40 + indices[:, 1].gather(-1, second)
        assert distance(choice.scores, best.transpose(0, 1)) <= 1e-14
        assert torch.equal(choice.slots, slots.transpose(0, 1))
        assert torch.equal(choice.positions.long(), torch.stack([first, second]).transpose(1, 2))


@examples(10, 20)
@given(seed=st.integers(0, 10**6), topk=st.integers(1, 9), levels=st.integers(0, 3))
def test_equal_sums_go_to_the_lowest_slot(seed: int, topk: int, levels: int) -> None:
    """Dot products that are small whole numbers."""
    kept = random_kept(seed % 1000, topk)
    kept = kept._replace(costs=draw_integers(seed, -levels, levels, 4, 3, topk).sort(-1).values)
    choice = product_key.select_slots(kept, 40, "dot_product")
    expected = select_slots(kept._replace(indices=kept.indices.long()), 40, "dot_product")
    assert torch.equal(choice.slots, expected.slots)
    assert torch.equal(choice.scores, expected.scores)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("topk", [1, 3, 8])
def test_probabilities_are_the_softmax_of_the_kept_scores(topk: int, score: str) -> None:
    kept = random_kept(topk, topk, spread=1e4)
    choice = product_key.select_slots(kept, 40, score, moving=2)
    expected = scores_of(kept.costs, score).softmax(-1)
    expected[:, 2:] = 0
    assert choice.probabilities is not None and distance(choice.probabilities, expected) <= 1e-13


@pytest.mark.parametrize(
    ("lengths_known", "score"),
    product_cases([False, True], SCORES, quick=lambda known, score: known and score == "idw"),
)
def test_sub_keys_and_slots_are_chosen_at_once_with_the_same_bits(
    score: str, lengths_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two heads, in blocks of three tokens."""
    queries, sub_keys = draw(16, 4, 7, 6, dtype=torch.float32), draw(17, 4, 12, 6, dtype=torch.float32)
    kept = product_key.select_sub_keys(queries, sub_keys, 5, score)
    choice = product_key.select_slots(kept, 12, score, moving=4)
    monkeypatch.setattr(product_key, "_BLOCK_ELEMENTS", 4 * 12 * 3)
    lengths = sub_keys.norm(dim=-1) if lengths_known else None
    both = product_key.address(queries, sub_keys, 5, score, 4, lengths)
    assert torch.equal(both.kept.indices, kept.indices) and torch.equal(both.kept.costs, kept.costs)
    for found, expected in zip(both.choice, choice, strict=True):
        assert found is not None and expected is not None and torch.equal(found, expected)
    lists = torch.arange(4, device=DEVICE).view(-1, 1, 1) * 12
    assert both.sort_keys is not None and both.sort_keys.dtype == torch.int16
    assert torch.equal(both.sort_keys.long(), kept.indices + lists)
    assert product_key.address(queries, sub_keys, 5, score).sort_keys is None


@pytest.mark.slow
def test_the_order_of_programs_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, sub_keys = near_pairs()
    monkeypatch.setattr(product_key, "_NUMBERS", 64)

    def choose() -> list[Tensor]:
        kept = product_key.select_sub_keys(queries[:, :4], sub_keys, 7, "idw")
        choice = product_key.select_slots(kept, 48, "idw", moving=3)
        assert choice.probabilities is not None
        both = product_key.address(queries[:, :4], sub_keys, 7, "idw", moving=3)
        return [kept.indices, kept.costs, *choice, *both.kept[:2], both.choice.slots]

    expected = choose()
    with shuffled(1):
        assert all(torch.equal(a, b) for a, b in zip(choose(), expected, strict=True))
