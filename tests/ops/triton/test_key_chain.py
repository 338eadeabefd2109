"""The sub-keys' chain in kernels is the chain in torch: outputs, gradients, and the same bits in any order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_fwpkm.ops.fast_weight_memory.key_chain import KeyChain, KeyOptions, KeyPiece
from megatron_fwpkm.ops.fast_weight_memory.key_rows import KeyRows
from megatron_fwpkm.ops.fast_weight_memory.sparse.key_steps import SparseKeySteps
from megatron_fwpkm.ops.fast_weight_memory.triton import key_steps as triton_steps
from megatron_fwpkm.ops.fast_weight_memory.triton.key_steps import TritonKeySteps
from megatron_fwpkm.ops.product_key.triton import select as product_key
from tests.ops.cases import distance
from tests.ops.host_waits import host_waits
from tests.ops.shards import ThreadShards, run_ranks
from tests.ops.triton.harness import one_at_a_time, poisoned, shuffled
from tests.ops.triton.keys import TOLERANCE, draw, draw_integers
from tests.quick_cases import examples

NAMES = ("scores", "slots", "sub_keys", "losses", "grad queries", "grad sub_keys")
CHUNKS = [KeyPiece(0, 3, 3), KeyPiece(3, 6, 6), KeyPiece(6, 7, 7)]
OFFICIAL = [KeyPiece(2, 5, 2), KeyPiece(0, 7, 6)]
STREAMING = [KeyPiece(0, 4, 3), KeyPiece(3, 6, 5), KeyPiece(5, 7, 5)]
SHORT = [KeyPiece(0, 3, 2), KeyPiece(2, 5, 4)]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with poisoned():
        yield


@pytest.fixture
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make these few tokens and sub-keys the work of many programs, each with several passes over its dimensions."""
    monkeypatch.setattr(product_key, "_NUMBERS", 8)
    for name, value in (("TILE", 2), ("_LOADS", 2), ("_NUMBERS", 8), ("_READERS", 4), ("_WIDE", 4)):
        monkeypatch.setattr(triton_steps, name, value)


def run(steps: Any, queries: Tensor, sub_keys: Tensor, options: KeyOptions, needs: str = "both") -> dict[str, Tensor]:
    """All outputs, and the gradients of a fixed random function of the scores."""
    queries = queries.detach().clone().requires_grad_(needs in ("both", "queries"))
    sub_keys = sub_keys.detach().clone().requires_grad_(needs in ("both", "sub_keys"))
    found = list(KeyChain.apply(queries, sub_keys, options._replace(steps=steps)))
    if needs != "nothing":
        (found[0] * draw(99, *found[0].shape, dtype=queries.dtype)).sum().backward()
    gradients = [leaf.grad for leaf in (queries, sub_keys)]
    return {name: x.detach() for name, x in zip(NAMES, [*found, *gradients], strict=True) if x is not None}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    assert torch.equal(actual["slots"], expected["slots"])
    far = {name: distance(actual[name], expected[name]) for name in actual}
    assert not {name: value for name, value in far.items() if not value <= tolerance}, far


def make(
    seed: int = 0,
    *,
    heads: int = 1,
    num_subkeys: int = 4,
    topk: int = 3,
    half_dim: int = 4,
    rows: int = 7,
    score: str = "idw",
    key_lr: float = 0.7,
    pieces: list[KeyPiece] = CHUNKS,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, KeyOptions]:
    """Inputs of one call."""
    queries = draw(seed, 2 * heads, rows, half_dim, dtype=dtype)
    sub_keys = draw(seed + 1, 2 * heads, num_subkeys, half_dim, dtype=dtype)
    return queries, sub_keys, KeyOptions(TritonKeySteps, topk, score, key_lr, pieces, KeyRows(num_subkeys, None))


@st.composite
def calls(draw_from: st.DrawFn) -> dict[str, Any]:
    """Shapes and options of one call."""
    num_subkeys = draw_from(st.integers(1, 5))
    return {
        "seed": draw_from(st.integers(0, 10**6)),
        "heads": draw_from(st.integers(1, 2)),
        "num_subkeys": num_subkeys,
        "topk": draw_from(st.integers(1, num_subkeys)),
        "half_dim": draw_from(st.integers(1, 6)),
        "score": draw_from(st.sampled_from(["idw", "dot_product"])),
        "key_lr": draw_from(st.sampled_from([0.0, 0.5, 2.0])),
        "pieces": draw_from(st.sampled_from([CHUNKS, STREAMING, OFFICIAL, [KeyPiece(0, 7, 0)], [KeyPiece(2, 7, 6)]])),
    }


@examples(4, 15)
@given(calls())
def test_it_is_the_chain_in_torch(call: dict[str, Any]) -> None:
    inputs = make(**call)
    assert_close(run(TritonKeySteps, *inputs), run(SparseKeySteps, *inputs), 1e-12)


@pytest.mark.parametrize("score", ["idw", "dot_product"])
@pytest.mark.parametrize(
    ("pieces", "dtype"),
    [
        pytest.param(CHUNKS, torch.float32, id="chunks-float32"),
        pytest.param(STREAMING, torch.float64, id="streaming-float64", marks=pytest.mark.slow),
        pytest.param(CHUNKS, torch.float64, id="chunks-float64", marks=pytest.mark.slow),
        pytest.param(STREAMING, torch.float32, id="streaming-float32", marks=pytest.mark.slow),
    ],
)
def test_it_is_the_chain_in_torch_where_sub_keys_move(pieces: list[KeyPiece], dtype: torch.dtype, score: str) -> None:
    queries, sub_keys, options = make(3, heads=2, pieces=pieces, score=score)
    expected = run(SparseKeySteps, queries, sub_keys, options)
    assert distance(expected["sub_keys"], sub_keys) > 1e-3, "the case must move the sub-keys"
    assert_close(run(TritonKeySteps, queries.to(dtype), sub_keys.to(dtype), options), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("score", [pytest.param("idw", marks=pytest.mark.slow), "dot_product"])
def test_many_programs_give_the_same_bits_in_any_order(score: str, small_programs: None) -> None:
    inputs = make(4, num_subkeys=3, topk=2, half_dim=3, rows=5, pieces=SHORT, score=score)
    in_order = run(TritonKeySteps, *inputs)
    assert_close(in_order, run(SparseKeySteps, *inputs), 1e-12)
    with shuffled(1):
        other = run(TritonKeySteps, *inputs)
    assert all(torch.equal(other[name], in_order[name]) for name in NAMES)


@pytest.mark.parametrize("key_lr", [0.0, 1.0])
def test_waiting_tokens_may_be_read_after_new_ones(key_lr: float) -> None:
    """As in the authors' streaming, where a piece that writes nothing comes first."""
    inputs = make(18, pieces=OFFICIAL, key_lr=key_lr)
    assert_close(run(TritonKeySteps, *inputs), run(SparseKeySteps, *inputs), 1e-12)


@pytest.mark.slow
def test_the_largest_topk() -> None:
    inputs = make(17, num_subkeys=40, topk=32, rows=5, pieces=SHORT)
    assert_close(run(TritonKeySteps, *inputs), run(SparseKeySteps, *inputs), 1e-12)


def test_gradients_are_those_of_the_function() -> None:
    """Finite differences. Three pieces, so that the second derivative of the movement takes part."""
    queries, sub_keys, options = make(5, num_subkeys=3, topk=2, half_dim=2)
    leaves = (queries.requires_grad_(), sub_keys.requires_grad_())
    chain = lambda *leaves: KeyChain.apply(*leaves, options)[0]  # noqa: E731
    assert torch.autograd.gradcheck(chain, leaves, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("wide", [2, 64])
@pytest.mark.parametrize("key_lr", [0.0, 1.0])
def test_sub_keys_that_many_read_are_summed_in_tiles(key_lr: float, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All queries equal, so that two of five sub-keys have all the readers, several tiles of them.

    The last program of a sub-key adds its tiles, or another launch does.
    """
    monkeypatch.setattr(triton_steps, "_WIDE", wide)
    monkeypatch.setattr(triton_steps, "TILE", 4)
    monkeypatch.setattr(triton_steps, "_READERS", 4)
    pieces = [KeyPiece(0, 18, 17), KeyPiece(18, 20, 20)]
    queries, sub_keys, options = make(6, topk=2, rows=20, pieces=pieces, key_lr=key_lr)
    inputs = queries[:, :1].expand(-1, 20, -1), sub_keys, options
    assert_close(run(TritonKeySteps, *inputs), run(SparseKeySteps, *inputs), 1e-12)


def test_a_tile_of_the_usual_size_and_one_reader_more() -> None:
    rows = triton_steps.TILE + 1
    queries, sub_keys, _ = make(7, num_subkeys=2, rows=rows)
    options = KeyOptions(TritonKeySteps, 1, "idw", 1.0, [KeyPiece(0, rows, rows)], KeyRows(2, None))
    queries = queries[:, :1].expand(-1, rows, -1)
    assert_close(
        run(TritonKeySteps, queries, sub_keys, options), run(SparseKeySteps, queries, sub_keys, options), 1e-12
    )


@pytest.mark.parametrize("score", ["idw", "dot_product"])
def test_equal_sub_keys_and_queries_on_them(score: str) -> None:
    """Every distance is 0 or a whole number, many are equal, and a query lies on every sub-key."""
    queries, sub_keys = draw_integers(8, -1, 1, 2, 8, 2), draw_integers(9, -1, 1, 2, 6, 2)
    queries[:, :6] = sub_keys
    inputs = queries, sub_keys, KeyOptions(TritonKeySteps, 3, score, 1.0, [KeyPiece(0, 8, 8)], KeyRows(6, None))
    assert_close(run(TritonKeySteps, *inputs), run(SparseKeySteps, *inputs), 1e-12)


@pytest.mark.parametrize(
    ("key_lr", "needs"),
    [
        (0.0, "queries"),
        pytest.param(0.7, "queries", marks=pytest.mark.slow),
        (0.7, "sub_keys"),
        pytest.param(0.7, "nothing", marks=pytest.mark.slow),
    ],
)
def test_only_what_is_needed_is_differentiated(key_lr: float, needs: str) -> None:
    inputs = make(10, key_lr=key_lr, rows=5, pieces=SHORT)
    assert_close(run(TritonKeySteps, *inputs, needs), run(SparseKeySteps, *inputs, needs), 1e-12)
    for steps in (TritonKeySteps, SparseKeySteps):
        whole = run(steps, *inputs)
        for name, found in run(steps, *inputs, needs).items():
            assert torch.equal(found, whole[name]), "the bits do not depend on what else is asked for"


def test_scores_that_nothing_depends_on_have_no_gradients() -> None:
    queries, sub_keys, options = make()
    queries.requires_grad_()
    scores, *_ = KeyChain.apply(queries, sub_keys, options)
    assert KeyChain.backward(scores.grad_fn, None) == (None, None, None)


@pytest.mark.parametrize("key_lr", [0.0, 1.0])
def test_calls_may_be_cut_between_pieces(key_lr: float) -> None:
    queries, sub_keys, options = make(12, dtype=torch.float32, key_lr=key_lr)
    expected = run(TritonKeySteps, queries, sub_keys, options, "nothing")
    scores, slots, losses = [], [], []
    for start, stop, _ in CHUNKS:
        part = options._replace(pieces=[KeyPiece(0, stop - start, stop - start)])
        found = run(TritonKeySteps, queries[:, start:stop], sub_keys, part, "nothing")
        sub_keys = found["sub_keys"]
        scores.append(found["scores"])
        slots.append(found["slots"])
        losses.append(found["losses"])
    for name, parts in (("scores", scores), ("slots", slots), ("losses", losses)):
        assert torch.equal(torch.cat(parts), expected[name]), name
    assert torch.equal(sub_keys, expected["sub_keys"])


def test_tokens_may_come_one_by_one_while_sub_keys_rest() -> None:
    """A piece that reads again, as in streaming, gives the bits of the first reading."""
    queries, sub_keys, options = make(13, dtype=torch.float32, key_lr=0.0, pieces=STREAMING)
    expected = run(TritonKeySteps, queries, sub_keys, options, "nothing")
    alone = options._replace(pieces=[KeyPiece(0, 1, 0)])
    one_by_one = [run(TritonKeySteps, queries[:, t : t + 1], sub_keys, alone, "nothing") for t in range(7)]
    rows = [row for piece in STREAMING for row in range(piece.start, piece.stop)]
    for name in ("scores", "slots"):
        assert torch.equal(torch.cat([one_by_one[row][name] for row in rows]), expected[name])


def test_tokens_after_the_moving_ones_change_no_bit_of_the_movement() -> None:
    queries, sub_keys, options = make(14, dtype=torch.float32)
    short = run(TritonKeySteps, queries[:, :5], sub_keys, options._replace(pieces=[KeyPiece(0, 5, 5)]), "nothing")
    longer = run(TritonKeySteps, queries, sub_keys, options._replace(pieces=[KeyPiece(0, 7, 5)]), "nothing")
    assert torch.equal(short["sub_keys"], longer["sub_keys"]) and torch.equal(short["losses"], longer["losses"])


@pytest.mark.parametrize(
    ("score", "key_lr"),
    [("idw", 0.7), pytest.param("dot_product", 0.7, marks=pytest.mark.slow), ("idw", 0.0)],
)
def test_processes_may_share_the_sub_keys_by_rows(score: str, key_lr: float) -> None:
    """Two ranks with two rows of every list each and three kept: the bits of one process, but for sums of gradients."""
    queries, sub_keys, options = make(16, rows=5, pieces=SHORT, score=score, key_lr=key_lr)
    expected = run(TritonKeySteps, queries, sub_keys, options)

    def run_rank(shards: ThreadShards) -> dict[str, Tensor]:
        part = sub_keys.chunk(2, 1)[shards.rank].contiguous()
        return run(TritonKeySteps, queries, part, options._replace(rows=KeyRows(2, shards)))

    with one_at_a_time():
        ranks = run_ranks(2, run_rank)
    for name in ("scores", "slots", "losses"):
        assert all(torch.equal(found[name], expected[name]) for found in ranks), name
    assert torch.equal(torch.cat([found["sub_keys"] for found in ranks], 1), expected["sub_keys"])
    assert torch.equal(ranks[0]["grad queries"], ranks[1]["grad queries"])
    assert distance(ranks[0]["grad queries"], expected["grad queries"]) <= 1e-12
    assert distance(torch.cat([found["grad sub_keys"] for found in ranks], 1), expected["grad sub_keys"]) <= 1e-12


@pytest.mark.parametrize(
    "wide",
    [pytest.param(1, id="last program"), pytest.param(64, id="another launch", marks=pytest.mark.slow)],
)
def test_many_readers_of_sub_keys_that_processes_share(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles before the first sub-key of a rank, and of each of its own; tickets are 0 when all is done."""
    monkeypatch.setattr(triton_steps, "_WIDE", wide)
    monkeypatch.setattr(triton_steps, "TILE", 4)
    steps: list[TritonKeySteps] = []

    class Noted(TritonKeySteps):
        def __init__(self, queries: Tensor, options: KeyOptions) -> None:
            super().__init__(queries, options)
            steps.append(self)

    pieces = [KeyPiece(0, 18, 17), KeyPiece(18, 20, 20)]
    queries, sub_keys, options = make(17, rows=20, half_dim=2, topk=2, pieces=pieces)
    expected = run(TritonKeySteps, queries, sub_keys, options)

    def run_rank(shards: ThreadShards) -> dict[str, Tensor]:
        part = sub_keys.chunk(2, 1)[shards.rank].contiguous()
        return run(Noted, queries, part, options._replace(steps=Noted, rows=KeyRows(2, shards)))

    with one_at_a_time(), shuffled(1):
        ranks = run_ranks(2, run_rank)
    assert torch.equal(torch.cat([found["sub_keys"] for found in ranks], 1), expected["sub_keys"])
    assert distance(torch.cat([found["grad sub_keys"] for found in ranks], 1), expected["grad sub_keys"]) <= 1e-12
    assert all(step.tickets is None or not step.tickets.any() for step in steps)


@pytest.mark.parametrize("key_lr", [0.0, 0.7])
def test_the_host_never_waits(key_lr: float) -> None:
    inputs = make(15, key_lr=key_lr, pieces=STREAMING)
    with host_waits() as found:
        run(TritonKeySteps, *inputs)
        assert not found
        run(SparseKeySteps, *inputs)
        assert found
