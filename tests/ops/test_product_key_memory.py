"""The static product key memory's reads against dense autograd, and against the authors' released code."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from megatron_fwpkm.ops.product_key_memory import read
from megatron_fwpkm.ops.product_key_memory.read import choose_slots, sum_rows
from megatron_fwpkm.ops.product_key_memory.reference import reference_slots, reference_sum


class Case(NamedTuple):
    """Inputs of a memory, which ask for gradients."""

    queries: Tensor
    sub_keys: Tensor
    values: Tensor


def make_case(seed: int, tokens: int = 37, heads: int = 3, num_subkeys: int = 7, key_dim: int = 8, width: int = 5,
              dtype: torch.dtype = torch.float64) -> Case:  # fmt: skip
    """Random inputs."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (tokens, heads, key_dim), (heads, 2, num_subkeys, key_dim // 2), (num_subkeys**2, width)
    return Case(*(torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes))


def gradients(output: Tensor, case: Case) -> tuple[Tensor, ...]:
    """Gradients of a fixed random functional of `output`."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad((output * weights.to(output.dtype)).sum(), case, retain_graph=True)


def assert_close(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """By the largest number there is."""
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), heads=st.integers(1, 4), num_subkeys=st.integers(1, 9), data=st.data())
def test_reads_and_gradients_are_those_of_dense_autograd(
    seed: int, heads: int, num_subkeys: int, data: st.DataObject
) -> None:
    topk = data.draw(st.integers(1, num_subkeys))
    case = make_case(seed, 11, heads, num_subkeys, 6, 3)
    slots, weights = choose_slots(case.queries, case.sub_keys, topk)
    expected_slots, expected_weights = reference_slots(case.queries, case.sub_keys, topk)
    assert torch.equal(slots, expected_slots)
    ours, expected = sum_rows(case.values, slots, weights), reference_sum(case.values, expected_slots, expected_weights)
    assert_close(ours, expected, 1e-12)
    for one, other in zip(gradients(ours, case), gradients(expected, case), strict=True):
        assert_close(one, other, 1e-12) if other.abs().max() else assert_close(one, other, 0)


def test_blocks_of_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: what one token reads depends on no other, and rows are added in the order of the tokens."""
    results = []
    for elements in (1 << 20, 130):
        monkeypatch.setitem(read._BLOCK_ELEMENTS, "cpu", elements)
        case = make_case(4)
        slots, weights = choose_slots(case.queries, case.sub_keys, 4)
        output = sum_rows(case.values, slots, weights)
        of_queries, of_keys, of_values = gradients(output, case)
        results.append((slots, weights, output, of_values))
        kept = of_queries, of_keys
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    monkeypatch.undo()
    whole = gradients(sum_rows(case.values, *choose_slots(case.queries, case.sub_keys, 4)), case)
    for one, other in zip(kept, whole[:2], strict=True):
        assert_close(one, other, 1e-14)


def test_equal_scores_go_to_the_lowest_slots() -> None:
    case = make_case(5, num_subkeys=6)
    equal = case.sub_keys[:, :, :1].expand(-1, -1, 6, -1)
    assert (choose_slots(case.queries, equal, 4)[0] == torch.arange(4)).all()


def test_the_gradient_of_read_rows_can_be_added_where_it_belongs() -> None:
    """What Megatron keeps gradients in takes the rows, and no tensor of the table's size is made."""
    case, kept = make_case(6), torch.full((49, 5), 2.0, dtype=torch.float64)
    slots, weights = choose_slots(case.queries, case.sub_keys, 4)
    expected = gradients(sum_rows(case.values, slots, weights), case)
    others = gradients(sum_rows(case.values, slots, weights, lambda: kept), case)
    assert_close(kept - 2, expected[2], 1e-14)
    assert others[2].is_sparse and others[2]._nnz() == 0
    assert torch.equal(others[0], expected[0]) and torch.equal(others[1], expected[1])


def test_without_a_place_for_it_the_gradient_of_the_values_comes_back() -> None:
    case = make_case(7)
    slots, weights = choose_slots(case.queries, case.sub_keys, 4)
    expected = gradients(sum_rows(case.values, slots, weights), case)
    assert torch.equal(gradients(sum_rows(case.values, slots, weights, lambda: None), case)[2], expected[2])


def test_values_in_bfloat16_are_read_in_it_and_their_gradient_is_rounded_once() -> None:
    wide = make_case(8, tokens=300, dtype=torch.float32)
    case = wide._replace(values=wide.values.detach().bfloat16().requires_grad_())
    slots, weights = choose_slots(case.queries, case.sub_keys, 4)
    output = sum_rows(case.values, slots, weights)
    exact = reference_sum(case.values.double(), slots, weights.double())
    assert output.dtype == torch.bfloat16 and (output - exact).abs().max() < 0.03
    kept = torch.zeros(49, 5)
    gradients(sum_rows(case.values, slots, weights, lambda: kept), case)
    rounded = gradients(output, case)[2]
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, kept.bfloat16())


def test_no_tokens_read_nothing() -> None:
    case = make_case(11, tokens=0)
    output = sum_rows(case.values, *choose_slots(case.queries, case.sub_keys, 4))
    assert output.shape == (0, 5) and not any(one.abs().sum() for one in gradients(output, case))


def test_frozen_values_get_no_gradient() -> None:
    case = make_case(10)
    slots, weights = choose_slots(case.queries, case.sub_keys, 4)
    output = sum_rows(case.values.detach(), slots, weights, lambda: pytest.fail("there is nothing to add"))
    assert torch.autograd.grad(output.sum(), case.queries)[0].abs().max() > 0


def test_the_authors_layer(goldens) -> None:
    """Query, joint norm, read, gate and output of the paper's layer, forward and all gradients (in float32)."""
    golden = goldens("pkm_default")
    sizes = golden.meta["module"]
    heads, topk = sizes["mem_heads"], sizes["mem_knn"]
    names = [name.removeprefix("param.") for name in golden.tensors if name.startswith("param.")]
    inputs = {name: golden[f"param.{name}"].requires_grad_() for name in names} | {"x": golden["in.x"].requires_grad_()}

    def linear(x: Tensor, name: str) -> Tensor:
        """A linear layer of the case."""
        return F.linear(x, inputs[f"{name}.weight"], inputs[f"{name}.bias"])

    x = inputs["x"].flatten(0, 1)
    queries = linear(x, "query_proj.query_mlps.0")
    queries = F.rms_norm(queries, queries.shape[-1:], inputs["query_proj.norm.weight"], 1e-6)
    sub_keys = inputs["keys"].view(heads, 2, sizes["mem_n_keys"], -1)
    slots, weights = choose_slots(queries.unflatten(-1, (heads, -1)), sub_keys, topk)
    retrieved = sum_rows(inputs["values.weight"], slots, weights)
    output = linear(retrieved * F.silu(linear(x, "swilu_projection")), "value_proj").view_as(golden["in.W"])
    assert torch.equal(slots.flatten(1).sort(-1).values, golden["f32.indices"].flatten(0, 1).long().sort(-1).values)
    assert_close(output, golden["f32.output"], 1e-5)
    (output * golden["in.W"]).sum().backward()
    for name, tensor in inputs.items():
        assert_close(tensor.grad, golden[f"f32.grad.{name}"], 1e-5)
